"""Drives the critical jobs at their intervals: each on a thread of its own, so that none delays another.

The `schedule` library says when; a database row says whether it is this node's turn and how the last one went. A
database that cannot be written stops no heartbeat: the row is history, the call is the duty.
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

#: Longest sleep between two looks at the schedule: what a jump of the wall clock can delay.
LONGEST_SLEEP_S = 1.0
#: How long a turn waits, before and after, for SQLite's lock to write down that it begins and how it ended.
BUSY_MS = 500


@dataclass(kw_only=True)
class CriticalJob:
    """One duty at an interval."""

    name: str
    interval_s: float
    run: Callable[[], float | None]  #: may return the seconds until its next turn
    wake: threading.Event = field(default_factory=threading.Event)  #: asks for a turn now
    for_each_node: bool = True  #: False: one node of the cluster does it a period
    link: Link | None = None  #: told when FulcrumCore did not answer; an answer is noted where it comes in
    started_at: float = 0.0  #: monotonic; of the turn under way or the last one
    finished_at: float = 0.0  #: monotonic; of the last turn
    failing_with: str = ""  #: the kind of its last turn's failure, which is logged when it begins and not each time
    generation: int = 0  #: a repaired job's older thread ends itself


class Scheduler:
    """Starts, watches and stops the threads of the critical jobs."""

    def __init__(self, engine: Engine, jobs: Sequence[CriticalJob]) -> None:
        # A duty that writes its history waits for nobody: a heartbeat is due more often than a writer may take.
        self._engine = engine.execution_options(smith_busy_ms=BUSY_MS)
        self._stopping = threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self.jobs = {job.name: job for job in jobs}

    def start(self) -> None:
        """Start every critical job; each takes its first turn at once."""
        for name in self.jobs:
            self._start_one(name)

    def stop(self, within_s: float = 5.0) -> None:
        """Ask every thread to end and wait a little."""
        self._stopping.set()
        for job in self.jobs.values():
            job.wake.set()
        limit = time.monotonic() + within_s
        for thread in self._threads.values():
            thread.join(max(limit - time.monotonic(), 0))

    def overdue(self, patience: float = 3.0, slack_s: float = 30.0) -> list[str]:
        """Return the names whose thread is gone, or whose last turn ended too long ago."""
        now = time.monotonic()
        late = []
        for name, job in self.jobs.items():
            thread = self._threads.get(name)
            quiet_s = now - max(job.finished_at, job.started_at)
            if thread is None or not thread.is_alive() or quiet_s > job.interval_s * patience + slack_s:
                late.append(name)
        return late

    def repair(self, name: str) -> None:
        """Give a critical job a new thread; the old one, should it ever wake up, ends by itself."""
        self._start_one(name)

    def _start_one(self, name: str) -> None:
        job = self.jobs[name]
        job.generation += 1
        job.started_at = job.finished_at = time.monotonic()
        thread = threading.Thread(target=self._drive, args=(job, job.generation), name=name, daemon=True)
        self._threads[name] = thread
        thread.start()

    def _drive(self, job: CriticalJob, generation: int) -> None:
        timer = schedule.Scheduler()
        due_at = time.monotonic()
        while not self._stopping.is_set() and job.generation == generation:
            # The monotonic clock too: `schedule` reads local time, which is set back an hour every autumn.
            if time.monotonic() >= due_at or job.wake.is_set() or any(entry.should_run for entry in timer.jobs):
                job.wake.clear()
                asked_s = self._turn(job)
                due_at = self._plan_next(timer, job, job.interval_s if asked_s is None else asked_s)
            job.wake.wait(min(max(due_at - time.monotonic(), 0.01), LONGEST_SLEEP_S))

    @staticmethod
    def _plan_next(timer: schedule.Scheduler, job: CriticalJob, pause_s: float) -> float:
        """Set the timer and return the same moment by the monotonic clock."""
        # From start to start: a slow answer must not stretch the interval.
        rest_s = max(job.started_at + pause_s - time.monotonic(), 0.05)
        timer.clear()
        entry = timer.every(1).seconds.do(lambda: None)
        entry.next_run = _in_seconds(rest_s)
        return time.monotonic() + rest_s

    def _turn(self, job: CriticalJob) -> float | None:
        job.started_at = time.monotonic()
        pause_s: float | None = None
        error: str | None = None
        if self._is_our_turn(job):
            kind = ""
            try:
                pause_s = job.run()
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
                # A defect in one duty must not end it for good: said loudly, and tried again at the next turn.
                error = kind = type(failure).__name__
                if kind != job.failing_with:
                    log.exception("critical_job_crashed", name=job.name)
            if job.failing_with and error is None:
                log.info("critical_job_recovered", name=job.name)
            job.failing_with = kind
            self._write_down(job, error)
        job.finished_at = time.monotonic()
        return pause_s

    def _is_our_turn(self, job: CriticalJob) -> bool:
        try:
            with transaction(self._engine) as session:
                return periods.try_start_period(session, job.name, job.interval_s, force=job.for_each_node)
        except DatabaseError:
            return True

    def _write_down(self, job: CriticalJob, error: str | None) -> None:
        with suppress(DatabaseError), transaction(self._engine) as session:
            periods.record_period_result(session, job.name, error=error)


def _in_seconds(seconds: float) -> object:
    """Return a naive local time, which is what `schedule` compares with."""
    import datetime  # noqa: PLC0415 (kept beside the one use of naive time in the program)

    return datetime.datetime.now() + datetime.timedelta(seconds=seconds)  # noqa: DTZ005 (schedule's own convention)
