"""Runs one agent process from start to exit: starts its threads, checks limits and signals, and shuts down.

Each critical job (a periodic task of the agent), each running job, the dispatcher, the reporter and the lease keeper
has its own thread. The main thread checks limits (for example of memory, see `monitor.Limit`) and signals, and only
the main thread decides that the agent stops. Signal handlers only record that a signal was received. A draining
agent claims no more jobs and waits for the end of its running jobs. A `StopSignal` is not a signal of the operating
system, but an object with which the dispatcher asks one running job to end. Each constant of the class StopSignal is a
reason why a job must end, such as AGENT_STOPPING. The supervisor is the agent's parent process, which starts and
restarts the agent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from executor.agent.background_call import call_while_reporting_progress
from executor.agent.database_lock import exclusive_database
from executor.agent.database_start import prepare_database_when_available
from executor.agent.dispatcher import Dispatcher
from executor.agent.fence import is_fencing
from executor.agent.installation import installation_id
from executor.agent.leases import LeaseKeeper
from executor.agent.mode import AgentEndCheck, Mode
from executor.agent.monitor import Monitor
from executor.agent.registration import register_agent
from executor.agent.reloadable_secrets import ReloadableSecrets
from executor.agent.reporter import Reporter
from executor.agent.scheduler import Scheduler
from executor.agent.signal_waiter import SignalWaiter
from executor.agent.state import AgentState
from executor.agent.stop_signal import StopSignal
from executor.database import move_queries, nodes, notifications, reaping, schema
from executor.database.engine import transaction
from executor.database.nodes import AgentProcess
from executor.database.notifications import NotificationListener
from executor.errors import EXIT_FAILURE, EXIT_OK, EXIT_RESTART, DatabaseError
from executor.log import get_logger
from executor.processes.progress import ProgressSender
from executor.proxmox.client import ProxmoxReader
from executor.runs.runner import Runner
from executor.settings.settings import Settings
from executor.version import VERSION

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Interval of the main loop, which is also the interval of the messages to the supervisor. A signal ends the wait
#: between two iterations at once.
MAIN_LOOP_INTERVAL_S = 1.0
#: Interval of the main loop while the agent waits for the end of its jobs, and in every mode other than `Mode.SERVE`.
#: In `Mode.SERVE`, the agent works until a signal or a limit stops it.
SHORT_MAIN_LOOP_INTERVAL_S = 0.2
#: Before the agent exits, it asks the running jobs to end, and waits at most this time until they have ended.
STOP_JOBS_TIMEOUT_S = 20.0
#: Used instead of STOP_JOBS_TIMEOUT_S after the signal QUIT. Must be less than 8 s: the supervisor kills the agent 8 s
#: after QUIT.
STOP_JOBS_TIMEOUT_AFTER_QUIT_S = 6.0
#: Before the agent exits, it tries for at most this time to send the due reports (job results that are not yet sent).
REPORT_FLUSH_TIMEOUT_S = 10.0
#: How long one iteration of the loop `listen` waits for a notification of PostgreSQL that jobs can be claimed.
LISTEN_TIMEOUT_S = 5.0
#: How long a loop waits after a database error or an unexpected exception.
LOOP_RETRY_S = 5.0


def new_boot_id() -> str:
    """Return a new boot id, which identifies one agent process.

    The random part keeps the boot id unique when the operating system uses a process id again.
    """
    short_host, random_part = socket.gethostname()[:20], uuid.uuid4().hex[:12]
    return f"{short_host}-{os.getpid()}-{random_part}"


@dataclass(kw_only=True)
class Agent:
    """Runs one agent process. The module `executor.composition` builds the Agent and the objects in its fields."""

    settings: Settings
    mode: Mode  #: says when the agent ends by itself
    #: The id of this agent process. In the table `nodes`, whose rows are agent processes, it is the key of the
    #: process's row. In the table of jobs, it is the owner of the jobs that this process has claimed.
    boot_id: str
    state: AgentState  #: flags and counters that all threads share
    engine: Engine
    secrets: ReloadableSecrets
    proxmox: ProxmoxReader
    runner: Runner
    reporter: Reporter
    dispatcher: Dispatcher
    lease_keeper: LeaseKeeper
    scheduler: Scheduler
    monitor: Monitor
    agent_end_check: AgentEndCheck  #: checks whether the agent must end, because it has done what `mode` requires
    #: The received signals that ask this process to stop (TERM, INT, QUIT), in the order of arrival.
    _received_signals: list[int] = field(default_factory=list)
    _signal_waiter: SignalWaiter = field(default_factory=SignalWaiter)
    #: Waits for notifications of other agent processes. Not used on SQLite.
    listener: NotificationListener = field(init=False)
    _is_secret_reload_requested: bool = False  #: HUP was received, and the reload of the secrets has not started yet

    def __post_init__(self) -> None:
        self.listener = NotificationListener(engine=self.engine)

    def run(self) -> int:
        """Work until a limit is reached, a signal arrives, or the agent has done what `mode` requires.

        Returns the exit code. In `Mode.SERVE`, the agent waits while the database is unavailable, and while the schema
        of PostgreSQL is newer than this version of the agent. In the other modes, this method raises DatabaseError
        instead. In every mode, it raises DatabaseError when the database is damaged, when another agent uses the SQLite
        database, or when the schema of SQLite is newer.
        """
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(signum, lambda received, _frame: self._received_signals.append(received))
        signal.signal(signal.SIGHUP, self._request_secret_reload)
        with exclusive_database(self.settings.smith_database_url), self._signal_waiter:
            self._end_earlier_runs()
            if self.mode is not Mode.SERVE:
                call_while_reporting_progress(self._prepare_database, ProgressSender().report_progress)
            elif not prepare_database_when_available(
                self._prepare_database,
                is_stop_requested=lambda: bool(self._received_signals),
                # Whether to wait while the schema is newer than this version of the agent.
                waits_for_agent_upgrade=self.engine.dialect.name != "sqlite",
            ):
                return EXIT_OK  # a signal has ended the wait for the database
            self._start_warm_server()
            log.info("agent_ready", boot_id=self.boot_id, version=VERSION, concurrency=self.settings.smith_concurrency)
            self._start_loops()
            reason, planned_exit_code = self._wait_for_stop_reason()
            exit_code = self._shut_down(reason, planned_exit_code)
        log.info("agent_stopped", reason=reason, exit_code=exit_code, ended_job_count=self.state.ended_job_count)
        return exit_code

    # --- start ----------------------------------------------------------------------------------------------------

    def _end_earlier_runs(self) -> None:
        """End the runs of earlier agent processes that used this data folder."""
        for run_ident in self.runner.end_earlier_runs():
            log.warning("orphan_run_killed", run_ident=run_ident)

    def _start_warm_server(self) -> None:
        """Start the warm server: a process that has already imported Ansible, and from which runs are forked."""
        # If warm runs are not possible on this machine, SMITH_WARM=on raises SettingsError. With SMITH_WARM=auto, each
        # run is then a new ansible-playbook process.
        if self.settings.smith_warm != "off":
            self.runner.start_warm_server(are_warm_runs_required=self.settings.smith_warm == "on")

    def _prepare_database(self) -> None:
        """Migrate the schema, register this process, and reap the jobs of ended processes.

        To reap a job is to take it from its owner. Raises DatabaseError for a sealed database, whose rows `smith db
        migrate` has moved to another database.
        """
        move_queries.refuse_sealed_database(self.engine)
        schema.upgrade(self.engine)
        agent_process = AgentProcess(
            boot_id=self.boot_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=VERSION,
            concurrency=self.settings.smith_concurrency,
            # Whether this process ends its runs before its leases expire; other processes read it in the table
            # `nodes`. This process does not know yet whether there are other processes, so it assumes that there are.
            fences=is_fencing(self.settings.smith_fence, has_other_agents=True),
            cluster=self.settings.smith_cluster,
            installation_id=installation_id(self.settings.smith_data_dir),
        )
        register_agent(self.engine, agent_process, self.state)  # also reaps the jobs

    def _start_loops(self) -> None:
        # The fence ends the runs if the last renewal of the leases was too long ago. If this process is suspended or
        # blocked, the guard process of each run ends the run at the deadline that the fence has stored. The call
        # below sets the first deadline. Each renewal sets the deadline again.
        self.lease_keeper.fence.set_deadline_before_first_run()
        self.scheduler.start()
        loops = {
            "dispatch": self.dispatcher.dispatch,
            "report": self._send_due_reports,
            "leases": self.lease_keeper.maintain_leases,
            "fence": self.lease_keeper.fence.end_overdue_runs,
        }
        if self.engine.dialect.name != "sqlite":
            loops["listen"] = self._wait_for_job_notification
        for name, iterate in loops.items():
            threading.Thread(target=self._run_loop, args=(name, iterate), name=name, daemon=True).start()

    def _run_loop(self, name: str, iterate: Callable[[], None]) -> None:
        """Call `iterate` again and again until the agent stops. An exception delays the loop but does not end it."""
        is_failing = False
        while not self.state.stopping.is_set():
            self.state.record_iteration_start(name)
            try:
                iterate()
                if is_failing:
                    log.info("loop_recovered", loop=name)
                is_failing = False
            except DatabaseError as error:
                if not is_failing:
                    log.error("loop_cannot_use_database", loop=name, reason=str(error).splitlines()[0])
                is_failing = True
                self.state.stopping.wait(LOOP_RETRY_S)
            except Exception:
                # An unexpected exception must not end the loop: without the loop, all later jobs would wait for ever.
                log.exception("loop_crashed", loop=name)
                self.state.stopping.wait(LOOP_RETRY_S)

    def _send_due_reports(self) -> None:
        """Send the due reports (job results). Then wait as long as the reporter requests, or until a job ends."""
        wait_s = self.reporter.send_due_reports()
        if wait_s > 0:
            self.state.report_requested.wait(wait_s)
        self.state.report_requested.clear()

    def _wait_for_job_notification(self) -> None:
        """Wait for a notification of another agent that jobs can be claimed, and then wake the dispatcher."""
        if self.listener.wait(LISTEN_TIMEOUT_S):
            self.state.dispatch_requested.set()

    # --- work -----------------------------------------------------------------------------------------------------

    def _wait_for_stop_reason(self) -> tuple[str, int]:
        """Wait until a signal, a limit or the mode stops the agent; return the reason and the exit code."""
        progress = ProgressSender()
        interval_s = MAIN_LOOP_INTERVAL_S if self.mode is Mode.SERVE else SHORT_MAIN_LOOP_INTERVAL_S
        while True:
            self._run_main_iteration(progress)
            self.monitor.restart_overdue_critical_jobs()
            if self._received_signals:
                return "signal", EXIT_OK
            limit = self.monitor.find_reached_limit()
            if limit is not None:
                log.info("limit_reached", limit=limit)
                # EXIT_RESTART makes the supervisor start a new agent process.
                exit_code = EXIT_RESTART if self.mode is Mode.SERVE else EXIT_OK
                return f"limit {limit}", exit_code
            if self.agent_end_check.is_done():
                return "done", EXIT_OK
            self._signal_waiter.wait(interval_s)

    def _run_main_iteration(self, progress: ProgressSender) -> None:
        """Send the supervisor a sign of life and a status line. After the signal HUP, start a reload of the secrets."""
        progress.report_progress()
        self.state.record_iteration_start("main")
        if self.state.is_ready:
            progress.report_ready()
            progress.report_status(self.state.summary)
        if self._is_secret_reload_requested:
            self._is_secret_reload_requested = False
            log.info("reload_requested")
            # The reload has its own thread, because it may read the secrets for Proxmox from FulcrumCore. A slow answer
            # must not stop the main loop.
            threading.Thread(target=self._reload_secrets, name="reload", daemon=True).start()

    def _request_secret_reload(self, _signum: int, _frame: object) -> None:
        self._is_secret_reload_requested = True

    def _reload_secrets(self) -> None:
        """Read the secrets for FulcrumCore and Proxmox again. The next requests use the new values."""
        self.secrets.reload()
        self.proxmox.connection = self.secrets.proxmox_connection()

    # --- stop -----------------------------------------------------------------------------------------------------

    def _shut_down(self, reason: str, exit_code: int) -> int:
        """Drain until the drain timeout, ask the remaining jobs to end, send due reports, and stop every loop.

        Returns `exit_code`, or EXIT_FAILURE when a job has not ended although it was asked to end.
        """
        self.state.draining.set()
        self.dispatcher.close()  # the dispatcher starts no more jobs
        log.info("drain_started", reason=reason, running_job_count=self.dispatcher.running_job_count)
        with contextlib.suppress(DatabaseError), transaction(self.engine) as session:
            nodes.store_agent_draining(session, self.boot_id)
        have_jobs_ended = self._wait_for_jobs(self.settings.smith_drain_timeout_s)
        if not have_jobs_ended:
            self.dispatcher.stop_all_jobs(StopSignal.AGENT_STOPPING)
            is_quit_received = signal.SIGQUIT in self._received_signals
            timeout_s = STOP_JOBS_TIMEOUT_AFTER_QUIT_S if is_quit_received else STOP_JOBS_TIMEOUT_S
            have_jobs_ended = self._wait_for_jobs(timeout_s, is_interruptible=False)
        if signal.SIGQUIT not in self._received_signals and self.state.fulcrum_link.is_up:
            self._flush_reports()
        self.state.stopping.set()
        self.state.dispatch_requested.set()  # wakes the dispatcher, which then sees that the agent stops
        self.state.report_requested.set()  # wakes the reporter
        self.scheduler.stop()
        call_while_reporting_progress(self.runner.stop_warm_server, ProgressSender().report_progress)
        # `stop_signals` has an entry for each running job, even if the job was not asked to end.
        running_job_ids = self.dispatcher.stop_signals().keys()
        with contextlib.suppress(DatabaseError), transaction(self.engine) as session:
            # Running jobs are not released: they keep their leases.
            if reaping.release_jobs_of_owner(session, owner=self.boot_id, running_job_ids=running_job_ids):
                notifications.notify_agent_processes_of_jobs(session)
            # `nodes` has a row for each agent process. While jobs still run, this process is not stored as stopped:
            # other processes must count the resources of these jobs as used, and wait until the jobs' leases expire.
            if not running_job_ids:
                nodes.store_agent_stop(session, self.boot_id, reason)
        return exit_code if have_jobs_ended else EXIT_FAILURE

    def _flush_reports(self) -> None:
        """Send due reports for at most REPORT_FLUSH_TIMEOUT_S. The next agent process sends the remaining reports.

        The reports are sent in the background, because one request may take longer than REPORT_FLUSH_TIMEOUT_S, and the
        database may hang.
        """
        progress = ProgressSender()
        with contextlib.suppress(DatabaseError):
            call_while_reporting_progress(
                lambda: self.reporter.flush(REPORT_FLUSH_TIMEOUT_S),
                lambda: self._run_main_iteration(progress),
                timeout_s=REPORT_FLUSH_TIMEOUT_S,
            )

    def _wait_for_jobs(self, timeout_s: float, *, is_interruptible: bool = True) -> bool:
        """Wait until no job runs; return True. Return False when jobs still run after `timeout_s`.

        With `is_interruptible`, also return False after a second signal (TERM or INT) or after QUIT.
        """
        progress, deadline = ProgressSender(), time.monotonic() + timeout_s
        while self.dispatcher.running_job_count:
            self._run_main_iteration(progress)
            is_interrupted = len(self._received_signals) > 1 or signal.SIGQUIT in self._received_signals
            if time.monotonic() >= deadline or (is_interruptible and is_interrupted):
                return False
            self._signal_waiter.wait(SHORT_MAIN_LOOP_INTERVAL_S)
        return True
