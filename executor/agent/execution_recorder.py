"""Stores for each critical job, in one row, the number of executions, the last start and the last error.

A critical job is a periodic task of the agent. In this module, `job` always means a critical job, and an agent is one
agent process.

A database that hangs must not delay a heartbeat. So the executions of a job that every agent executes, such as
Heartbeat, are stored after the execution, by a separate thread. Successful executions are stored together, every
MAX_UNSTORED_S seconds, because GetPendingJobs runs every 2 s. A failure, and the first success after a failure, are
stored at once. Executions that could not be stored, because the database failed, are stored with the next execution.

The start of a job that only one agent executes is stored before the execution. The stored start begins a period, in
which only the agent that stored the start executes the job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from executor.agent.critical_job import CriticalJob
from executor.database import periods
from executor.database.engine import transaction
from executor.errors import DatabaseError, DatabaseLocked

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

#: How long a write waits for SQLite's lock.
SQLITE_LOCK_TIMEOUT_MS = 500
#: Maximum time for which successful executions are not stored. It must be much shorter than the time after which
#: `smith critical` and `smith status` show a critical job as overdue (3 intervals plus 30 s).
MAX_UNSTORED_S = 10.0


@dataclass(frozen=True)
class _UnstoredExecutions:
    """The executions of a critical job that are not stored yet."""

    job: CriticalJob
    count: int
    error: str | None  #: error of the last execution
    #: The start of the last execution. It is None only before a job's first execution, so never here.
    started_at: datetime | None

    def store(self, session: Session, boot_id: str) -> None:
        """Store these executions, without a commit. `boot_id` is the id of this agent process."""
        job = self.job
        if job.is_executed_by_each_process and self.started_at is not None:
            periods.record_executions(
                session,
                job.name,
                job.interval_s,
                started_at=self.started_at,
                execution_count=self.count,
                error=self.error,
                boot_id=boot_id,
            )
        else:
            # Only one agent executes the job. `try_start_period` has stored the start, unless the database failed. So
            # only the end and the error of the execution are stored here.
            periods.record_period_result(session, job.name, error=self.error)


class ExecutionRecorder:
    """Stores the executions of critical jobs, and decides which agent executes a job that only one agent executes."""

    def __init__(self, engine: Engine, jobs: Collection[CriticalJob], boot_id: str = "") -> None:
        self._engine = engine.execution_options(smith_busy_timeout_ms=SQLITE_LOCK_TIMEOUT_MS)
        self._jobs = jobs
        self._boot_id = boot_id  #: id of this agent process
        #: The names of the jobs for which this process has called `periods.try_start_period` without an error.
        self._names_of_tried_jobs: set[str] = set()
        self._lock = threading.Lock()  #: protects `unstored_execution_count` of the jobs
        self._wake_requested = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run_loop, name="critical-job-results", daemon=True)

    def start(self) -> None:
        """Start the thread that stores the executions of the jobs that every agent executes."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Let the thread store all executions that are not stored yet, and end. Wait for this at most `timeout_s`."""
        self._stopping.set()
        self._wake_requested.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def try_start_period(self, job: CriticalJob, *, is_requested: bool = False) -> bool:
        """Try to start a period of the job. Return whether this agent executes the job now.

        A period is a little shorter than the job's interval. A new period can start when the last one is over. If
        another part of the agent has requested an execution (`is_requested`) and the job has
        `ignores_period_if_requested`, a new period starts before the last one is over. While FulcrumCore does not
        answer this agent (`job.fulcrum_link` is down), this agent starts a period only some time after the last one is
        over, so that another agent can start it first. If another agent holds the lock of the job's row for too long,
        this agent starts no period.
        """
        if job.is_executed_by_each_process:
            return True
        if not job.may_start():  # for example, while an agent with another id in FulcrumCore uses the database
            return False
        try:
            with transaction(self._engine) as session:
                is_started = periods.try_start_period(
                    session,
                    job.name,
                    job.delay_until_next_execution_s,  # the interval, or the delay that the last execution requested
                    # True until this call has succeeded once for the job. While it is True, a period starts at once if
                    # the interval has changed since the last period started.
                    is_first=job.name not in self._names_of_tried_jobs,
                    is_requested=is_requested and job.ignores_period_if_requested,
                    waits_for_other_agents=job.fulcrum_link is not None and not job.fulcrum_link.is_up,
                    boot_id=self._boot_id,
                )
        except DatabaseLocked:
            # Another agent is starting the period, or hangs in the transaction that starts the period.
            # PostgreSQL soon ends such a transaction, which releases the lock.
            return False
        except DatabaseError:
            return True  # without the database, every agent executes the critical job
        self._names_of_tried_jobs.add(job.name)
        return is_started

    def record_execution(self, job: CriticalJob) -> None:
        """Record one execution. Store the unstored executions if they must be stored now."""
        with self._lock:
            job.unstored_execution_count += 1
        if not job.is_executed_by_each_process:
            self._store_executions(job)
        elif self._must_store(job):
            self._wake_requested.set()

    def _run_loop(self) -> None:
        while not self._stopping.is_set():
            self._wake_requested.wait()
            self._wake_requested.clear()
            jobs = [job for job in self._jobs if job.is_executed_by_each_process]
            if any(self._must_store(job) for job in jobs):
                self._store_executions(*jobs)
        self._store_executions(*self._jobs)

    @staticmethod
    def _must_store(job: CriticalJob) -> bool:
        """Return whether the job's executions must be stored now.

        They must be stored if the newest execution failed, if the newest stored execution failed, or if the
        executions were last stored at least MAX_UNSTORED_S ago.
        """
        has_failed = job.last_error is not None or job.stored_error is not None
        is_storing_due = time.monotonic() - job.stored_at >= MAX_UNSTORED_S
        return job.unstored_execution_count > 0 and (has_failed or is_storing_due)

    def _store_executions(self, *jobs: CriticalJob) -> None:
        """Store the executions that are not stored yet, in one transaction.

        Do nothing if the database cannot be written. Two threads may call this method for one job at the same time.
        Each execution is nevertheless stored only once.
        """
        unstored_executions = self._take_unstored_executions(jobs)
        if not unstored_executions:
            return
        try:
            with transaction(self._engine) as session:
                for executions in unstored_executions:
                    executions.store(session, self._boot_id)
        except DatabaseError:
            with self._lock:
                for executions in unstored_executions:
                    executions.job.unstored_execution_count += executions.count
        else:
            for executions in unstored_executions:
                executions.job.stored_error, executions.job.stored_at = executions.error, time.monotonic()
            # While this method was writing, `record_execution` may have called `_must_store` with the previous
            # `stored_error` and `stored_at`. So `_must_store` is called again here.
            if any(self._must_store(executions.job) for executions in unstored_executions):
                self._wake_requested.set()

    def _take_unstored_executions(self, jobs: Iterable[CriticalJob]) -> list[_UnstoredExecutions]:
        """Return the executions of these jobs that are not stored. No other call returns them again.

        The caller stores them, or adds their number to `unstored_execution_count` again.
        """
        with self._lock:
            unstored_executions = [
                _UnstoredExecutions(job, job.unstored_execution_count, job.last_error, job.last_execution_started_at)
                for job in jobs
                if job.unstored_execution_count
            ]
            for executions in unstored_executions:
                executions.job.unstored_execution_count = 0
        return unstored_executions
