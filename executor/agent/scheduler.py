"""Runs the critical jobs at their intervals, each on its own thread, so that none delays another.

The `schedule` library decides when; a database row decides which node runs it, and stores the last result. A critical
job runs even when the database cannot be written: the row is only its history.
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

#: Maximum sleep between two checks of the schedule: the delay that a jump of the wall clock can cause.
MAX_SLEEP_S = 1.0
#: How long a turn waits for SQLite's lock, once to store its start and once to store its result.
BUSY_MS = 500


@dataclass(kw_only=True)
class CriticalJob:
    """A periodic task of the agent. A turn is one execution of it."""

    name: str
    interval_s: float
    run: Callable[[], float | None]  #: may return the seconds until its next turn
    wake: threading.Event = field(default_factory=threading.Event)  #: requests a turn now
    for_each_node: bool = True  #: False: one node of all that share the database runs it per interval
    link: Link | None = None  #: set to down when FulcrumCore does not answer; the job itself sets it to up
    started_at: float = 0.0  #: monotonic; of the current or last turn
    finished_at: float = 0.0  #: monotonic; of the last turn
    failing_with: str = ""  #: type of the last turn's exception; a repeated failure is logged once
    generation: int = 0  #: raised by `restart`: threads of an older generation end


class Scheduler:
    """Starts, watches and stops the threads of the critical jobs."""

    def __init__(self, engine: Engine, jobs: Sequence[CriticalJob]) -> None:
        # A short lock timeout: a heartbeat is due more often than another writer may hold the lock.
        self._engine = engine.execution_options(smith_busy_ms=BUSY_MS)
        self._stopping = threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self.jobs = {job.name: job for job in jobs}

    def start(self) -> None:
        """Start every critical job; each takes its first turn at once."""
        for name in self.jobs:
            self._start_one(name)

    def stop(self, within_s: float = 5.0) -> None:
        """Ask every thread to end, and wait for them."""
        self._stopping.set()
        for job in self.jobs.values():
            job.wake.set()
        limit = time.monotonic() + within_s
        for thread in self._threads.values():
            thread.join(max(limit - time.monotonic(), 0))

    def overdue(self, max_intervals: float = 3.0, slack_s: float = 30.0) -> list[str]:
        """Return the critical jobs whose thread has died or whose last turn ended too long ago."""
        now = time.monotonic()
        late = []
        for name, job in self.jobs.items():
            thread = self._threads.get(name)
            quiet_s = now - max(job.finished_at, job.started_at)
            if thread is None or not thread.is_alive() or quiet_s > job.interval_s * max_intervals + slack_s:
                late.append(name)
        return late

    def restart(self, name: str) -> None:
        """Start a new thread for a critical job; the old one ends when it next checks its generation."""
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
            # Also by the monotonic clock: `schedule` reads local time, which is set back an hour every autumn.
            if time.monotonic() >= due_at or job.wake.is_set() or any(entry.should_run for entry in timer.jobs):
                job.wake.clear()
                requested_s = self._turn(job)
                due_at = self._plan_next(timer, job, job.interval_s if requested_s is None else requested_s)
            job.wake.wait(min(max(due_at - time.monotonic(), 0.01), MAX_SLEEP_S))

    @staticmethod
    def _plan_next(timer: schedule.Scheduler, job: CriticalJob, delay_s: float) -> float:
        """Set the timer and return the same time by the monotonic clock."""
        # Measured from the start of the turn: a slow answer must not stretch the interval.
        remaining_s = max(job.started_at + delay_s - time.monotonic(), 0.05)
        timer.clear()
        entry = timer.every(1).seconds.do(lambda: None)
        entry.next_run = _in_seconds(remaining_s)
        return time.monotonic() + remaining_s

    def _turn(self, job: CriticalJob) -> float | None:
        job.started_at = time.monotonic()
        delay_s: float | None = None
        error: str | None = None
        if self._may_run_here(job):
            kind = ""
            try:
                delay_s = job.run()
            except FulcrumUnavailable as unavailable:
                error = str(unavailable)
                if job.link is not None:
                    job.link.note_down(error)
            except (SmithError, OSError) as failure:
                error = str(failure).splitlines()[0][:300] if str(failure) else type(failure).__name__
                kind = type(failure).__name__
                if kind != job.failing_with:
                    log.warning("critical_job_failed", name=job.name, reason=error)
            except Exception as failure:
                # An unexpected exception must not end the thread: it is logged, and the next turn follows.
                error = kind = type(failure).__name__
                if kind != job.failing_with:
                    log.exception("critical_job_crashed", name=job.name)
            if job.failing_with and error is None:
                log.info("critical_job_recovered", name=job.name)
            job.failing_with = kind
            self._store_result(job, error)
        job.finished_at = time.monotonic()
        return delay_s

    def _may_run_here(self, job: CriticalJob) -> bool:
        try:
            with transaction(self._engine) as session:
                return periods.try_start_period(session, job.name, job.interval_s, force=job.for_each_node)
        except DatabaseError:
            return True

    def _store_result(self, job: CriticalJob, error: str | None) -> None:
        with suppress(DatabaseError), transaction(self._engine) as session:
            periods.record_period_result(session, job.name, error=error)


def _in_seconds(seconds: float) -> object:
    """Return a naive local time, which is what `schedule` compares with."""
    import datetime  # noqa: PLC0415 (next to the program's only use of naive time)

    return datetime.datetime.now() + datetime.timedelta(seconds=seconds)  # noqa: DTZ005 (schedule's own convention)
