"""Describes the critical jobs (the agent's periodic tasks), and concludes whether each is overdue."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # The classes need SQLAlchemy's ORM, which commands that only read do not import.
    from executor.database.tables.agents import CriticalJob


#: A critical job is overdue if more time than OVERDUE_AFTER_INTERVALS * its interval + OVERDUE_TOLERANCE_S has passed
#: since its last execution. `Scheduler.overdue_critical_jobs` (executor/agent/scheduler.py) has the same defaults.
OVERDUE_AFTER_INTERVALS = 3.0
OVERDUE_TOLERANCE_S = 30.0


def json_fields(job: CriticalJob, now: datetime) -> dict[str, Any]:
    """Return a critical job as a dictionary with the keys of `--json`."""
    return {
        "name": job.name,
        "interval_s": job.interval_s,
        "due_at": job.due_at,
        "due": job.due_at is None or job.due_at <= now,
        "overdue": is_overdue(job, now),
        "last_started_at": job.last_started_at,
        "last_finished_at": job.last_finished_at,
        "last_ok_at": job.last_ok_at,
        "last_error": job.last_error,
        "failures": job.failures,
        "runs": job.runs,
        "node": job.node,
    }


def is_overdue(job: CriticalJob, now: datetime) -> bool:
    """Return whether the last start or end of the critical job was too long ago (see OVERDUE_AFTER_INTERVALS).

    For a critical job that has never started, the time at which it became due counts instead.
    """
    last_times = [time for time in (job.last_started_at, job.last_finished_at) if time is not None]
    last_time = max(last_times, default=job.due_at)
    max_age = timedelta(seconds=job.interval_s * OVERDUE_AFTER_INTERVALS + OVERDUE_TOLERANCE_S)
    return last_time is not None and now - last_time > max_age
