"""Runs the critical jobs at their intervals, each on its own thread, so that none delays another.

A critical job is a periodic task of the agent; the name `job` in this module always means one. The `schedule` library
decides when its next execution is due. One database row per critical job stores the last result. When several agents
share the database, the row also decides which agent executes the critical job. When the database cannot be written, the
critical job is executed anyway.

A critical job that every agent executes, such as GetPendingJobs every 2 s, needs no decision. So only its first start
is stored before the execution, and the results of its successful executions are stored together, every
MAX_UNSTORED_S seconds. A failure, and the first success after a failure, are stored at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import schedule

from executor.agent.state import Link
from executor.database import periods
from executor.database.engine import transaction
from executor.database.tables import utc_now
from executor.errors import DatabaseError, FulcrumUnavailable, SmithError
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Maximum wait between two checks of the schedule. So a change of the wall clock delays an execution by at most this.
MAX_WAIT_S = 1.0
#: Minimum wait between two checks of the schedule, so that they do not use a whole CPU core.
MIN_WAIT_S = 0.01
#: Minimum time from the end of an execution to the start of the next one.
MIN_PAUSE_S = 0.05
#: How long an execution waits for SQLite's lock, to store its start and again to store its result.
SQLITE_LOCK_TIMEOUT_MS = 500
MAX_REASON_CHARS = 300
#: Maximum time for which successful executions are not stored. It must be much shorter than the time after which
#: `smith critical` and `smith status` show a critical job as overdue (3 intervals plus 30 s).
MAX_UNSTORED_S = 10.0


@dataclass(kw_only=True)
class CriticalJob:
    """A periodic task of the agent."""

    name: str
    interval_s: float
    run: Callable[[], float | None]  #: executes the critical job once; may return the seconds until the next execution
    wake_requested: threading.Event = field(default_factory=threading.Event)  #: set to start an execution now
    runs_on_each_agent: bool = True  #: if False, only one of the agents that share a database executes it
    #: Records whether FulcrumCore answers. The scheduler records failures in it, and `run` records successes.
    link: Link | None = None
    started_at: float = 0.0  #: monotonic; start of the current or last execution
    finished_at: float = 0.0  #: monotonic; end of the last execution
    #: The type of the last logged exception; '' after a success. The same type is not logged again before a success.
    #: FulcrumUnavailable is not logged here, because `link` logs the outage.
    logged_error_type: str = ""
    last_started: datetime | None = None  #: start of the current or last execution
    last_error: str | None = None  #: error of the last execution
    is_row_stored: bool = False  #: this process has stored a start of this critical job, so its row exists
    unstored_count: int = 0  #: number of executions since a result was last stored
    stored_error: str | None = None  #: error in the result that was last stored
    stored_at: float = float("-inf")  #: monotonic time at which a result was last stored
    generation: int = 0  #: incremented by `restart`; a thread of an older generation ends


class Scheduler:
    """Starts, checks and stops the threads of the critical jobs."""

    def __init__(self, engine: Engine, jobs: Sequence[CriticalJob]) -> None:
        # The timeout for the database lock is short, because a heartbeat must not wait for a slow writer to release it.
        self._engine = engine.execution_options(smith_busy_timeout_ms=SQLITE_LOCK_TIMEOUT_MS)
        self._stopping = threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self.jobs = {job.name: job for job in jobs}

    def start(self) -> None:
        """Start every critical job; the first execution of each begins at once."""
        for name in self.jobs:
            self._start_one(name)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ask all threads to end, and wait until they have ended, but not longer than `timeout_s`."""
        self._stopping.set()
        for job in self.jobs.values():
            job.wake_requested.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads.values():
            thread.join(max(deadline - time.monotonic(), 0))

    def overdue_critical_jobs(self, max_intervals: float = 3.0, slack_s: float = 30.0) -> list[str]:
        """Return the names of critical jobs whose thread has ended or whose next execution is overdue.

        An execution is overdue when none has started or ended for `max_intervals` intervals plus `slack_s`.
        """
        now = time.monotonic()
        overdue_names = []
        for name, job in self.jobs.items():
            thread = self._threads.get(name)
            is_alive = thread is not None and thread.is_alive()
            since_last_change_s = now - max(job.finished_at, job.started_at)
            if not is_alive or since_last_change_s > job.interval_s * max_intervals + slack_s:
                overdue_names.append(name)
        return overdue_names

    def restart(self, name: str) -> None:
        """Start a new thread for a critical job. The old thread ends when its execution ends, which may be never."""
        self._start_one(name)

    def _start_one(self, name: str) -> None:
        job = self.jobs[name]
        job.generation += 1
        job.started_at = job.finished_at = time.monotonic()
        thread = threading.Thread(target=self._run_loop, args=(job, job.generation), name=name, daemon=True)
        self._threads[name] = thread
        thread.start()

    def _run_loop(self, job: CriticalJob, generation: int) -> None:
        timer = schedule.Scheduler()
        due_at = time.monotonic()
        while not self._stopping.is_set() and job.generation == generation:
            # `schedule` uses local time, which is set back by an hour in autumn. So an execution is also due when the
            # delay has passed according to the monotonic clock.
            is_due = time.monotonic() >= due_at or any(entry.should_run for entry in timer.jobs)
            if is_due or job.wake_requested.is_set():
                job.wake_requested.clear()
                requested_delay_s = self._execute(job)
                delay_s = job.interval_s if requested_delay_s is None else requested_delay_s
                due_at = self._plan_next(timer, job, delay_s)
            job.wake_requested.wait(min(max(due_at - time.monotonic(), MIN_WAIT_S), MAX_WAIT_S))
        if job.unstored_count and job.generation == generation:
            self._store_result(job)

    @staticmethod
    def _plan_next(timer: schedule.Scheduler, job: CriticalJob, delay_s: float) -> float:
        """Set the timer to the next execution; return the monotonic time of that execution.

        The delay counts from the start of the last execution, so a slow answer does not extend the interval.
        """
        remaining_s = max(job.started_at + delay_s - time.monotonic(), MIN_PAUSE_S)
        timer.clear()
        entry = timer.every(1).seconds.do(lambda: None)  # only `next_run` of this entry is used
        entry.next_run = _local_time_after(remaining_s)
        return time.monotonic() + remaining_s

    def _execute(self, job: CriticalJob) -> float | None:
        """Execute a critical job once, and store and log its result. Return the delay that it requests, or None."""
        job.started_at, job.last_started = time.monotonic(), utc_now()
        delay_s: float | None = None
        error: str | None = None
        if self._try_start_period(job):
            try:
                delay_s = job.run()
            except FulcrumUnavailable as failure:
                error = str(failure)
                if job.link is not None:
                    job.link.note_down(error)
            except (SmithError, OSError) as failure:
                error_type = type(failure).__name__
                error = str(failure).splitlines()[0][:MAX_REASON_CHARS] if str(failure) else error_type
                if error_type != job.logged_error_type:
                    log.warning("critical_job_failed", name=job.name, reason=error)
                job.logged_error_type = error_type
            except Exception as failure:
                # An unexpected exception must not end the thread: the next execution follows after the interval.
                error = error_type = type(failure).__name__
                if error_type != job.logged_error_type:
                    log.exception("critical_job_crashed", name=job.name)
                job.logged_error_type = error_type
            if job.logged_error_type and error is None:
                log.info("critical_job_recovered", name=job.name)
                job.logged_error_type = ""
            job.last_error = error
            job.unstored_count += 1
            if self._must_store_result(job):
                self._store_result(job)
        job.finished_at = time.monotonic()
        return delay_s

    def _try_start_period(self, job: CriticalJob) -> bool:
        """Store the start of an execution. Return False when another agent has already executed the job.

        A period is the time in which only one agent executes the critical job. It is a little shorter than an interval.
        """
        if job.runs_on_each_agent and job.is_row_stored:
            return True
        try:
            with transaction(self._engine) as session:
                is_started = periods.try_start_period(session, job.name, job.interval_s, force=job.runs_on_each_agent)
        except DatabaseError:
            return True  # without the database, every agent executes the critical job
        job.is_row_stored = True
        return is_started

    @staticmethod
    def _must_store_result(job: CriticalJob) -> bool:
        """True unless the last execution succeeded, as did the last stored one, which is not MAX_UNSTORED_S old."""
        has_failed = job.last_error is not None or job.stored_error is not None
        is_old = time.monotonic() - job.stored_at >= MAX_UNSTORED_S
        return not job.runs_on_each_agent or has_failed or is_old

    def _store_result(self, job: CriticalJob) -> None:
        """Store the executions since the last stored result. Do nothing if the database cannot be written."""
        with suppress(DatabaseError):
            with transaction(self._engine) as session:
                if job.runs_on_each_agent and job.last_started is not None:
                    periods.record_runs(
                        session,
                        job.name,
                        job.interval_s,
                        started_at=job.last_started,
                        run_count=job.unstored_count,
                        error=job.last_error,
                    )
                else:
                    periods.record_period_result(session, job.name, error=job.last_error)
            job.unstored_count, job.stored_error, job.stored_at = 0, job.last_error, time.monotonic()


def _local_time_after(delay_s: float) -> object:
    """Return the local time after this delay, without a time zone, as `schedule` uses it."""
    import datetime  # noqa: PLC0415 (next to the program's only use of naive time)

    return datetime.datetime.now() + datetime.timedelta(seconds=delay_s)  # noqa: DTZ005 (schedule's own convention)
