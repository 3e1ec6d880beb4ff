"""Runs one agent process from start to exit: starts its threads, checks limits and signals, and shuts down.

Each critical job (a periodic task of the agent), each running job, the dispatcher, the reporter and the lease keeper
has its own thread. The main thread checks limits and signals, and only the main thread decides to stop. Signal handlers
only record the signal. To drain is to claim no more jobs and to wait until the running jobs have ended.
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
from enum import StrEnum
from typing import TYPE_CHECKING

from executor.agent.database_lock import exclusive_database
from executor.agent.dispatcher import Dispatcher
from executor.agent.leases import LeaseKeeper
from executor.agent.monitor import Monitor
from executor.agent.reloadable_secrets import ReloadableSecrets
from executor.agent.reporter import Reporter
from executor.agent.scheduler import Scheduler
from executor.agent.state import AgentState
from executor.agent.stop_signal import StopSignal
from executor.database import job_queue, nodes, queries, schema
from executor.database.engine import reading, transaction
from executor.errors import EXIT_FAILURE, EXIT_OK, EXIT_RESTART, DatabaseError
from executor.log import get_logger
from executor.processes.progress import Progress
from executor.proxmox.client import ProxmoxReader
from executor.runs.runner import Runner
from executor.settings.settings import Settings
from executor.version import VERSION

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Interval of the main loop: a signal or a limit is noticed after this time at the latest.
TICK_S = 0.2
#: How long the agent waits for cancelled runs to end before it exits.
CANCEL_GRACE_S = 20.0
#: How long the agent waits for cancelled runs to end after QUIT. This is less than the time after which the supervisor
#: kills the agent (QUIT_GRACE_S in supervisor.py).
QUIT_GRACE_S = 6.0
#: How long the agent tries to send the due reports before it exits.
FLUSH_S = 10.0
#: How long a loop waits after a database error or an unexpected exception.
DATABASE_RETRY_S = 5.0


class Mode(StrEnum):
    """Says when the agent ends without a signal and without having reached a limit."""

    SERVE = "serve"  #: the agent never ends by itself: it works until an operator stops it
    ONCE = "once"  #: the agent polls once, and ends when the jobs of that poll are processed and reported
    UNTIL_IDLE = "until-idle"  #: the agent ends when FulcrumCore has no more jobs for it


def new_boot_id() -> str:
    """Return a new boot id, which identifies one agent process.

    The boot id contains the process id and a random part, so it is unique even when the process id is used again.
    """
    return f"{socket.gethostname()[:20]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


@dataclass(kw_only=True)
class Agent:
    """Runs one agent process. The module `executor.composition` builds this object with all its parts."""

    settings: Settings
    mode: Mode
    boot_id: str  #: id of this agent process, in its row of the table `nodes` and as the owner of its jobs
    state: AgentState
    engine: Engine
    secrets: ReloadableSecrets
    proxmox: ProxmoxReader
    runner: Runner
    reporter: Reporter
    dispatcher: Dispatcher
    leases: LeaseKeeper
    scheduler: Scheduler
    monitor: Monitor
    _stop_signals: list[int] = field(default_factory=list)  #: TERM, INT and QUIT, in the order of arrival
    _is_reload_requested: bool = False  #: HUP was received and not yet handled

    def run(self) -> int:
        """Work until a limit, a signal or the mode ends the agent; return the exit code.

        Raises DatabaseError when the database is damaged, has a newer schema, or is in use by another agent.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, lambda received, _frame: self._stop_signals.append(received))
        signal.signal(signal.SIGHUP, self._request_reload)
        with exclusive_database(self.settings.smith_database_url):
            schema.upgrade(self.engine)
            self._recover()
            self._start_loops()
            reason, code = self._wait_for_stop_reason()
            code = self._shut_down(reason, code)
        log.info("agent_stopped", reason=reason, exit_code=code, jobs=self.state.jobs_ended)
        return code

    # --- start ----------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """End the runs of earlier agent processes, register this process, and reap the jobs of ended processes.

        To reap a job is to take it from an owner that has ended or whose lease has expired. On PostgreSQL, only the
        lease keeper reaps jobs, because other agents that share the database may still run.
        """
        for ident in self.runner.sweep():
            log.warning("orphan_run_killed", run_ident=ident)
        if self.settings.smith_warm != "off":
            self.runner.start_warm(required=self.settings.smith_warm == "on")
        with transaction(self.engine) as session:
            nodes.add(
                session,
                self.boot_id,
                host=socket.gethostname(),
                pid=os.getpid(),
                version=VERSION,
                concurrency=self.settings.smith_concurrency,
            )
            if self.engine.dialect.name == "sqlite":  # this process has locked the file: other owners have ended
                for job_id, status in job_queue.reap(session, sole_owner=self.boot_id):
                    log.warning("job_reaped", job_row=job_id, status=status)
        log.info("agent_ready", boot_id=self.boot_id, version=VERSION, concurrency=self.settings.smith_concurrency)

    def _start_loops(self) -> None:
        self.scheduler.start()
        loops = {"dispatch": self.dispatcher.dispatch, "report": self._report, "leases": self.leases.maintain}
        for name, body in loops.items():
            threading.Thread(target=self._run_loop, args=(name, body), name=name, daemon=True).start()

    def _run_loop(self, name: str, body: Callable[[], None]) -> None:
        """Repeat `body` until the agent stops. A database error delays the loop but does not end it."""
        is_failing = False
        while not self.state.stopping.is_set():
            self.state.note_progress(name)
            try:
                body()
                if is_failing:
                    log.info("loop_recovered", loop=name)
                is_failing = False
            except DatabaseError as error:
                if not is_failing:
                    log.error("loop_cannot_use_database", loop=name, reason=str(error).splitlines()[0])
                is_failing = True
                self.leases.note_database_error()
                self.state.stopping.wait(DATABASE_RETRY_S)
            except Exception:
                # An unexpected exception must not end the loop: without the loop, all later jobs would wait for ever.
                log.exception("loop_crashed", loop=name)
                self.state.stopping.wait(DATABASE_RETRY_S)

    def _report(self) -> None:
        """Send the due reports, then wait until a job has ended or the reporter's wait has passed."""
        wait_s = self.reporter.send_due_reports()
        if wait_s > 0:
            self.state.report_requested.wait(wait_s)
        self.state.report_requested.clear()

    # --- work -----------------------------------------------------------------------------------------------------

    def _wait_for_stop_reason(self) -> tuple[str, int]:
        """Check signals, limits and mode until the agent has to stop; return the reason and the exit code."""
        progress = Progress()
        while True:
            self._run_main_iteration(progress)
            self.monitor.restart_overdue_critical_jobs()
            if self._stop_signals:
                return "signal", EXIT_OK
            if (limit := self.monitor.reached_limit()) is not None:
                log.info("limit_reached", limit=limit)
                return f"limit {limit}", EXIT_RESTART if self.mode is Mode.SERVE else EXIT_OK
            if self._is_done():
                return "done", EXIT_OK
            time.sleep(TICK_S)

    def _run_main_iteration(self, progress: Progress) -> None:
        """Report progress and status to the supervisor, and reload the secrets after HUP."""
        progress.report_progress()
        self.state.note_progress("main")
        if self.state.is_ready:
            progress.ready()
            progress.status(self.state.summary)
        if self._is_reload_requested:
            self._is_reload_requested = False
            log.info("reload_requested")
            # The reload runs in another thread, because it may call FulcrumCore, and a slow answer must not stop this
            # loop.
            threading.Thread(target=self._reload, name="reload", daemon=True).start()

    def _request_reload(self, _number: int, _frame: object) -> None:
        self._is_reload_requested = True

    def _reload(self) -> None:
        self.secrets.reload()
        self.proxmox.connection = self.secrets.connection()

    def _is_done(self) -> bool:
        """True when the mode is ONCE or UNTIL_IDLE and its work is done."""
        if self.mode is Mode.SERVE or not self.state.agent_id or self.state.polls == 0 or self.dispatcher.running:
            return False
        if self._has_open_jobs():
            return False
        if self.mode is Mode.ONCE:
            return True
        # FulcrumCore lists the next job of a group only after it has received the report of the group's previous job.
        # A poll that is running now may have begun before that report. So the agent waits until two more polls have
        # ended: the second one has certainly begun after the report.
        polls_needed = self.state.polls + 2
        while self.state.polls < polls_needed and not self._stop_signals:
            self.state.poll_requested.set()
            time.sleep(TICK_S)
        return not self._has_open_jobs()

    def _has_open_jobs(self) -> bool:
        with reading(self.engine) as session:
            counts = queries.count_jobs(session)
        return bool(counts["pending"] + counts["processing"] + counts["reports_due"])

    # --- stop -----------------------------------------------------------------------------------------------------

    def _shut_down(self, reason: str, code: int) -> int:
        """Drain, cancel jobs that do not end in time, send due reports, and stop every loop.

        Returns `code`, or EXIT_FAILURE when a job did not end even after it was cancelled.
        """
        self.state.draining.set()
        log.info("drain_started", reason=reason, running=self.dispatcher.running)
        drained = self._wait_for_jobs(self.settings.smith_drain_timeout_s)
        if not drained:
            self.dispatcher.stop_all(StopSignal.AGENT_STOPPING)
            grace_s = QUIT_GRACE_S if signal.SIGQUIT in self._stop_signals else CANCEL_GRACE_S
            drained = self._wait_for_jobs(grace_s, ends_on_signal=False)
        if signal.SIGQUIT not in self._stop_signals:
            self.reporter.flush(FLUSH_S if self.state.fulcrum.is_up else 0.0)
        self.state.stopping.set()
        for event in (self.state.dispatch_requested, self.state.report_requested):
            event.set()
        self.scheduler.stop()
        self.runner.stop_warm()
        with contextlib.suppress(DatabaseError), transaction(self.engine) as session:
            job_queue.release_all(session, self.boot_id)
            nodes.note_stopped(session, self.boot_id, reason)
        return code if drained else EXIT_FAILURE

    def _wait_for_jobs(self, within_s: float, *, ends_on_signal: bool = True) -> bool:
        """Wait until no job runs, then return True. Return False when `within_s` has passed before.

        With `ends_on_signal`, also return False after a second stop signal or after QUIT.
        """
        progress, deadline = Progress(), time.monotonic() + within_s
        while self.dispatcher.running:
            self._run_main_iteration(progress)
            must_cancel = len(self._stop_signals) > 1 or signal.SIGQUIT in self._stop_signals
            if time.monotonic() >= deadline or (ends_on_signal and must_cancel):
                return False
            time.sleep(TICK_S)
        return True
