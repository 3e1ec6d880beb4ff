"""One life of the agent process: start, watch limits and signals, shut down.

Threads: one for each critical job, one each for dispatcher, reporter and leases, one for each running job. The main
thread watches limits and signals and is the only one that decides to stop. Signal handlers only record the signal.
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

#: Interval of the main loop: the delay until a signal or a limit is noticed.
TICK_S = 0.2
#: Time for cancelled runs to end before the process exits.
CANCEL_GRACE_S = 20.0
#: The same after QUIT: the supervisor waits only a little longer.
QUIT_GRACE_S = 6.0
#: Time for the last reports before the process exits.
FLUSH_S = 10.0
#: Wait of a loop after a database error.
DATABASE_RETRY_S = 5.0


class Mode(StrEnum):
    """How long the agent works."""

    SERVE = "serve"  #: until it is stopped
    ONCE = "once"  #: one poll; its jobs are processed and reported
    UNTIL_IDLE = "until-idle"  #: until FulcrumCore has no more jobs for us


def new_boot_id() -> str:
    """Return an id for one life of the agent: never used before, also not after a restart with the same PID."""
    return f"{socket.gethostname()[:20]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


@dataclass(kw_only=True)
class Agent:
    """One life of the agent process; `composition` builds it."""

    settings: Settings
    mode: Mode
    boot_id: str
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
    _signals: list[int] = field(default_factory=list)
    _reload_wanted: bool = False  #: HUP was received

    def run(self) -> int:
        """Work until a limit, a signal or the mode ends it. Returns the exit code.

        Raises DatabaseError when the database is newer, damaged, or held by another executor.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, lambda received, _frame: self._signals.append(received))
        signal.signal(signal.SIGHUP, self._request_reload)
        with exclusive_database(self.settings.smith_database_url):
            schema.upgrade(self.engine)
            self._recover()
            self._start_loops()
            reason, code = self._watch()
            code = self._shut_down(reason, code)
        log.info("agent_stopped", reason=reason, exit_code=code, jobs=self.state.jobs_ended)
        return code

    # --- start ----------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """End the runs of earlier agent processes, register this one, and reap the jobs of dead owners."""
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
            if self.engine.dialect.name == "sqlite":  # the lock on the file proves that every other owner is dead
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
        failing = False
        while not self.state.stopping.is_set():
            self.state.note_progress(name)
            try:
                body()
                if failing:
                    log.info("loop_recovered", loop=name)
                failing = False
            except DatabaseError as error:
                if not failing:
                    log.error("loop_cannot_use_database", loop=name, reason=str(error).splitlines()[0])
                failing = True
                self.leases.note_database_error()
                self.state.stopping.wait(DATABASE_RETRY_S)
            except Exception:
                # An unexpected exception must not end the loop: every later job would wait for ever, unnoticed.
                log.exception("loop_crashed", loop=name)
                self.state.stopping.wait(DATABASE_RETRY_S)

    def _report(self) -> None:
        pause_s = self.reporter.send_due_reports()
        if pause_s > 0:
            self.state.report_requested.wait(pause_s)
        self.state.report_requested.clear()

    # --- watch ----------------------------------------------------------------------------------------------------

    def _watch(self) -> tuple[str, int]:
        """Wait until the agent has to stop; return the reason and the exit code."""
        progress = Progress()
        while True:
            self._tick(progress)
            self.monitor.restart_overdue_critical_jobs()
            if self._signals:
                return "signal", EXIT_OK
            if (limit := self.monitor.reached_limit()) is not None:
                log.info("limit_reached", limit=limit)
                return f"limit {limit}", EXIT_RESTART if self.mode is Mode.SERVE else EXIT_OK
            if self.mode is not Mode.SERVE and self._is_done():
                return "done", EXIT_OK
            time.sleep(TICK_S)

    def _tick(self, progress: Progress) -> None:
        """One turn of the main thread's loops: report progress, and reload secrets after HUP."""
        progress.report_progress()
        self.state.note_progress("main")
        if self.state.is_ready:
            progress.ready()
            progress.status(self.state.summary)
        if self._reload_wanted:
            self._reload_wanted = False
            log.info("reload_requested")
            # In a thread: it may call FulcrumCore, which may be slow.
            threading.Thread(target=self._reload, name="reload", daemon=True).start()

    def _request_reload(self, _number: int, _frame: object) -> None:
        self._reload_wanted = True

    def _reload(self) -> None:
        self.secrets.reload()
        self.proxmox.connection = self.secrets.connection()

    def _is_done(self) -> bool:
        """True when a limited mode has nothing left to do."""
        if not self.state.agent_id or self.state.polls == 0 or self.dispatcher.running:
            return False
        has_open_jobs = self._has_open_jobs()
        if has_open_jobs or self.mode is Mode.ONCE:
            return not has_open_jobs
        # FulcrumCore may show the next job of a group only after our last report, and the poll that ends first may
        # have begun before that report: so two more polls.
        enough = self.state.polls + 2
        while self.state.polls < enough and not self._signals:
            self.state.poll_requested.set()
            time.sleep(TICK_S)
        return not self._has_open_jobs()

    def _has_open_jobs(self) -> bool:
        with reading(self.engine) as session:
            counts = queries.count_jobs(session)
        return bool(counts["pending"] + counts["processing"] + counts["reports_due"])

    # --- stop -----------------------------------------------------------------------------------------------------

    def _shut_down(self, reason: str, code: int) -> int:
        """Drain, cancel the jobs that do not end in time, send due reports, stop every loop. Returns the exit code."""
        self.state.draining.set()
        log.info("drain_started", reason=reason, running=self.dispatcher.running)
        drained = self._wait_for_jobs(self.settings.smith_drain_timeout_s)
        if not drained:
            self.dispatcher.stop_all(StopSignal.AGENT_STOPPING)
            grace_s = QUIT_GRACE_S if signal.SIGQUIT in self._signals else CANCEL_GRACE_S
            drained = self._wait_for_jobs(grace_s, stops_at_second_signal=False)
        if signal.SIGQUIT not in self._signals:
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

    def _wait_for_jobs(self, within_s: float, *, stops_at_second_signal: bool = True) -> bool:
        """Wait until no job runs; False after a timeout or a second stop signal."""
        progress, limit = Progress(), time.monotonic() + within_s
        while self.dispatcher.running:
            self._tick(progress)
            has_second_signal = len(self._signals) > 1 or signal.SIGQUIT in self._signals
            if time.monotonic() >= limit or (stops_at_second_signal and has_second_signal):
                return False
            time.sleep(TICK_S)
        return True
