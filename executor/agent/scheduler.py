"""Runs the critical jobs at their intervals, each on its own thread, so that none delays another.

A critical job is a periodic task of the agent. In this module, `job` always means a critical job. The `schedule`
library decides when the next execution of a job is due. `ExecutionRecorder` stores the executions in the database.
Several agent processes may use the database. Some critical jobs, such as the heartbeat to FulcrumCore, are executed
by each of these processes. Each other critical job is executed once per interval, by the process that first stores
the start of this execution. When the database cannot be written, every process executes all critical jobs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import schedule

from executor.agent.critical_job import CriticalJob
from executor.agent.execution_recorder import ExecutionRecorder
from executor.database.times import utc_now
from executor.errors import FulcrumAuthError, FulcrumUnavailable, SmithError
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Maximum wait between two checks whether an execution is due. If the wall clock is set forward past the time of the
#: next execution, the execution starts at most this long after the change of the clock.
MAX_WAIT_S = 5.0
#: Minimum wait between two checks whether an execution is due, so that the checks do not use a whole CPU core.
MIN_WAIT_S = 0.01
#: Minimum time from the end of an execution to the start of the next one.
MIN_GAP_S = 0.05
#: Maximum length of the error that is logged and stored for an execution.
MAX_ERROR_CHARS = 300
#: The maximum wait that FulcrumCore can request with `Retry-After`. It is short, because FulcrumCore marks an agent as
#: disconnected after 30 s without a heartbeat.
MAX_RETRY_AFTER_S = 20.0
#: In an outage of FulcrumCore, each failure doubles the delay until the next execution of a critical job. The doubling
#: stops at this delay. The delay is longer only if the critical job's interval is longer, or if FulcrumCore requests a
#: longer wait.
MAX_OUTAGE_DELAY_S = 5.0
#: Maximum number of doublings, to prevent an overflow. The shortest allowed interval, doubled this many times, is
#: longer than MAX_OUTAGE_DELAY_S.
MAX_DOUBLINGS = 16


class Scheduler:
    """Starts, checks and stops the threads of the critical jobs."""

    def __init__(self, engine: Engine, jobs: Sequence[CriticalJob], boot_id: str = "") -> None:
        """Prepare the scheduler. `boot_id` is this agent process's id, stored with each execution; '' stores no id."""
        self._recorder = ExecutionRecorder(engine, jobs, boot_id)
        self._stopping = threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self.jobs = {job.name: job for job in jobs}

    def start(self) -> None:
        """Start every critical job; the first execution of each begins at once."""
        self._recorder.start()
        for name in self.jobs:
            self._start_thread(name)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ask all threads to end, and wait until they have ended, at most `timeout_s`."""
        self._stopping.set()
        for job in self.jobs.values():
            job.wake_requested.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads.values():
            thread.join(max(deadline - time.monotonic(), 0))
        self._recorder.stop(max(deadline - time.monotonic(), 0))

    def overdue_critical_jobs(self, max_intervals: float = 3.0, tolerance_s: float = 30.0) -> list[str]:
        """Return the names of the critical jobs whose thread has ended or whose execution is overdue.

        An execution is overdue when no execution of the critical job has started or ended for `max_intervals` intervals
        plus `tolerance_s`.
        """
        now = time.monotonic()
        overdue_names = []
        for name, job in self.jobs.items():
            thread = self._threads.get(name)
            is_alive = thread is not None and thread.is_alive()
            since_last_change_s = now - max(job.finished_at, job.started_at)
            if not is_alive or since_last_change_s > job.interval_s * max_intervals + tolerance_s:
                overdue_names.append(name)
        return overdue_names

    def restart(self, name: str) -> None:
        """Start a new thread for a critical job. The old thread ends at the end of its current execution."""
        self._start_thread(name)

    def _start_thread(self, name: str) -> None:
        job = self.jobs[name]
        job.generation += 1  # the number of the newest thread; an older thread ends after its current execution
        job.started_at = job.finished_at = time.monotonic()
        thread = threading.Thread(target=self._run_loop, args=(job, job.generation), name=name, daemon=True)
        self._threads[name] = thread
        thread.start()

    def _run_loop(self, job: CriticalJob, generation: int) -> None:
        timer = schedule.Scheduler()  # its `jobs` are the entries of the library, not critical jobs
        due_at = time.monotonic()
        while not self._stopping.is_set() and job.generation == generation:
            # `schedule` uses local time, which is set back by an hour in autumn. So an execution is also due when the
            # delay has passed according to the monotonic clock.
            is_due = time.monotonic() >= due_at or any(entry.should_run for entry in timer.jobs)
            if is_due or job.wake_requested.is_set():
                is_requested = job.wake_requested.is_set()  # True: another thread has requested this execution
                job.wake_requested.clear()
                self._execute_job(job, is_requested=is_requested)
                due_at = self._plan_next_execution(timer, job, job.delay_until_next_execution_s)
            job.wake_requested.wait(min(max(due_at - time.monotonic(), MIN_WAIT_S), MAX_WAIT_S))

    @staticmethod
    def _plan_next_execution(timer: schedule.Scheduler, job: CriticalJob, delay_s: float) -> float:
        """Set the timer to the next execution; return the monotonic time of that execution.

        The delay counts from the start of the last execution, so the duration of that execution does not extend the
        interval.
        """
        remaining_s = max(job.started_at + delay_s - time.monotonic(), MIN_GAP_S)
        timer.clear()
        entry = timer.every(1).seconds.do(lambda: None)  # only `next_run` of this entry is used
        entry.next_run = _local_time_after(remaining_s)
        return time.monotonic() + remaining_s

    def _execute_job(self, job: CriticalJob, *, is_requested: bool) -> None:
        """Execute a critical job once.

        A period is a time, a little shorter than the interval, in which only one agent process executes the job.
        `try_start_period` returns False if this agent process must not execute the critical job now, usually because
        another process has executed it in the current period. Then only `run_if_other_process_executes` is executed,
        for example to delete old files on this process's machine. `is_requested` is True if another thread has woken
        the critical job's thread. Then a critical job with `ignores_period_if_requested` starts a new period, even if
        the current period is not over.
        """
        job.started_at, started_at_utc = time.monotonic(), utc_now()
        if self._recorder.try_start_period(job, is_requested=is_requested):
            job.last_execution_started_at = started_at_utc  # UTC; unlike `started_at`, set only if `run` is called
            job.delay_instead_of_interval_s = None
            self._call_and_store_error(job, job.run)
            self._recorder.record_execution(job)
        elif job.run_if_other_process_executes is not None:
            self._call_and_store_error(job, job.run_if_other_process_executes)
        job.finished_at = time.monotonic()

    @staticmethod
    def _call_and_store_error(job: CriticalJob, run: Callable[[], object]) -> None:
        """Call a function of a critical job. Store its error in `last_error`; None if it succeeds.

        The function may return the delay until the next execution, which is stored in `delay_instead_of_interval_s`. If
        it returns None, the delay is the interval.
        """
        error: str | None = None
        try:
            delay_s = run()
            job.outage_failure_count = 0
            job.delay_instead_of_interval_s = delay_s if isinstance(delay_s, int | float) else None
        except FulcrumUnavailable as failure:
            error = str(failure)
            job.outage_failure_count += 1
            job.delay_instead_of_interval_s = delay_after_failure_s(job.interval_s, failure, job.outage_failure_count)
            if job.fulcrum_link is not None:  # a Link, which records whether FulcrumCore answers
                job.fulcrum_link.record_failed_call(
                    error, has_refused_credentials=isinstance(failure, FulcrumAuthError)
                )
        except (SmithError, OSError) as failure:
            error_type = type(failure).__name__
            error = str(failure).splitlines()[0][:MAX_ERROR_CHARS] if str(failure) else error_type
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


def delay_after_failure_s(interval_s: float, failure: FulcrumUnavailable, failure_count: int = 1) -> float:
    """Return the delay until the next execution after `failure_count` failures in a row. Pure function.

    The delay is the longest of three times: the interval, the interval doubled `failure_count` - 1 times (at most
    MAX_OUTAGE_DELAY_S), and the wait that FulcrumCore requests (at most MAX_RETRY_AFTER_S).
    """
    grown_interval_s = min(interval_s * 2.0 ** min(failure_count - 1, MAX_DOUBLINGS), MAX_OUTAGE_DELAY_S)
    return max(interval_s, grown_interval_s, min(failure.retry_after_s or 0.0, MAX_RETRY_AFTER_S))


def _local_time_after(delay_s: float) -> object:
    """Return the local time after this delay, without a time zone, as `schedule` uses it."""
    import datetime  # noqa: PLC0415 (imported only here, so that no other function uses times without a time zone)

    return datetime.datetime.now() + datetime.timedelta(seconds=delay_s)  # noqa: DTZ005 (schedule's own convention)
