"""Runs the critical jobs at their intervals, each on its own thread, so that none delays another.

The `schedule` library decides when an execution is due. A database row stores the last result. When several agents
share the database, it also decides which agent executes the critical job. When the database cannot be written, the
critical job is executed anyway.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import schedule

from executor.agent.state import Link
from executor.database import periods
from executor.database.engine import transaction
from executor.errors import DatabaseError, FulcrumUnavailable, SmithError
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Maximum wait between two checks of the schedule, and so the delay that a change of the wall clock can cause.
MAX_SLEEP_S = 1.0
#: How long an execution waits for SQLite's lock, to store its start and again to store its result.
BUSY_MS = 500


@dataclass(kw_only=True)
class CriticalJob:
    """A periodic task of the agent."""

    name: str
    interval_s: float
    run: Callable[[], float | None]  #: executes the critical job once; may return the seconds until the next execution
    wake: threading.Event = field(default_factory=threading.Event)  #: when set, the next execution starts now
    for_each_agent: bool = True  #: False: only one of the agents that share the database executes it per interval
    link: Link | None = None  #: the scheduler records here that an outage began, `run` that it ended
    started_at: float = 0.0  #: monotonic; start of the current or last execution
    finished_at: float = 0.0  #: monotonic; end of the last execution
    failing_with: str = ""  #: type of the last execution's exception, so that a repeated failure is logged once
    generation: int = 0  #: incremented by `restart`; a thread of an older generation ends


class Scheduler:
    """Starts, checks and stops the threads of the critical jobs."""

    def __init__(self, engine: Engine, jobs: Sequence[CriticalJob]) -> None:
        # The timeout for the database lock is short, because a heartbeat must not wait for a slow writer to release it.
        self._engine = engine.execution_options(smith_busy_ms=BUSY_MS)
        self._stopping = threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self.jobs = {job.name: job for job in jobs}

    def start(self) -> None:
        """Start every critical job; the first execution of each begins at once."""
        for name in self.jobs:
            self._start_one(name)

    def stop(self, within_s: float = 5.0) -> None:
        """Ask every thread to end, and wait for them, at most `within_s` in all."""
        self._stopping.set()
        for job in self.jobs.values():
            job.wake.set()
        deadline = time.monotonic() + within_s
        for thread in self._threads.values():
            thread.join(max(deadline - time.monotonic(), 0))

    def overdue(self, max_intervals: float = 3.0, slack_s: float = 30.0) -> list[str]:
        """Return the names of critical jobs whose thread has ended or whose last execution was too long ago."""
        now = time.monotonic()
        overdue = []
        for name, job in self.jobs.items():
            thread = self._threads.get(name)
            since_s = now - max(job.finished_at, job.started_at)
            if thread is None or not thread.is_alive() or since_s > job.interval_s * max_intervals + slack_s:
                overdue.append(name)
        return overdue

    def restart(self, name: str) -> None:
        """Start a new thread for a critical job; the old one ends when it next compares the generation."""
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
            # `schedule` uses local time, which is set back an hour every autumn. So an execution is also due when the
            # delay has passed by the monotonic clock.
            if time.monotonic() >= due_at or job.wake.is_set() or any(entry.should_run for entry in timer.jobs):
                job.wake.clear()
                requested_s = self._execute(job)
                due_at = self._plan_next(timer, job, job.interval_s if requested_s is None else requested_s)
            job.wake.wait(min(max(due_at - time.monotonic(), 0.01), MAX_SLEEP_S))

    @staticmethod
    def _plan_next(timer: schedule.Scheduler, job: CriticalJob, delay_s: float) -> float:
        """Set the timer to the next execution; return the monotonic time of that execution.

        The delay counts from the start of the last execution, so a slow answer does not extend the interval.
        """
        remaining_s = max(job.started_at + delay_s - time.monotonic(), 0.05)
        timer.clear()
        entry = timer.every(1).seconds.do(lambda: None)
        entry.next_run = _in_seconds(remaining_s)
        return time.monotonic() + remaining_s

    def _execute(self, job: CriticalJob) -> float | None:
        """Execute a critical job once, and store and log its result. Return the delay that it requests."""
        job.started_at = time.monotonic()
        delay_s: float | None = None
        error: str | None = None
        if self._may_run_here(job):
            error_type = ""
            try:
                delay_s = job.run()
            except FulcrumUnavailable as unavailable:
                error = str(unavailable)
                if job.link is not None:
                    job.link.note_down(error)
            except (SmithError, OSError) as failure:
                error = str(failure).splitlines()[0][:300] if str(failure) else type(failure).__name__
                error_type = type(failure).__name__
                if error_type != job.failing_with:
                    log.warning("critical_job_failed", name=job.name, reason=error)
            except Exception as failure:
                # An unexpected exception must not end the thread: the next execution follows after the interval.
                error = error_type = type(failure).__name__
                if error_type != job.failing_with:
                    log.exception("critical_job_crashed", name=job.name)
            if job.failing_with and error is None:
                log.info("critical_job_recovered", name=job.name)
            job.failing_with = error_type
            self._store_result(job, error)
        job.finished_at = time.monotonic()
        return delay_s

    def _may_run_here(self, job: CriticalJob) -> bool:
        """True when this agent process has to execute the critical job now."""
        try:
            with transaction(self._engine) as session:
                return periods.try_start_period(session, job.name, job.interval_s, force=job.for_each_agent)
        except DatabaseError:
            return True

    def _store_result(self, job: CriticalJob, error: str | None) -> None:
        with suppress(DatabaseError), transaction(self._engine) as session:
            periods.record_period_result(session, job.name, error=error)


def _in_seconds(seconds: float) -> object:
    """Return the local time after this delay, without a time zone, as `schedule` uses it."""
    import datetime  # noqa: PLC0415 (next to the program's only use of naive time)

    return datetime.datetime.now() + datetime.timedelta(seconds=seconds)  # noqa: DTZ005 (schedule's own convention)
