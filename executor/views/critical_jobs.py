"""Describes the critical jobs (the agent's periodic tasks), and concludes whether each is overdue."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Not imported at run time, because the import would load SQLAlchemy's ORM, which is slow.
    from executor.database.tables.agents import CriticalJob


#: A critical job is overdue if more time than OVERDUE_AFTER_INTERVALS * its interval + OVERDUE_TOLERANCE_S has passed
#: since its last start or end. The agent then starts a new thread for the critical job. The values equal the default
#: values of the parameters of `Scheduler.overdue_critical_jobs`.
OVERDUE_AFTER_INTERVALS = 3.0
OVERDUE_TOLERANCE_S = 30.0


def json_fields(job: CriticalJob, now: datetime) -> dict[str, Any]:
    """Return a critical job as a dictionary with the keys of `--json`."""
    return {
        "name": job.name,
        "interval_s": job.interval_s,
        "due_at": job.due_at,  # None before the first execution
        "due": job.due_at is None or job.due_at <= now,
        "overdue": is_overdue(job, now),
        "last_started_at": job.last_started_at,
        "last_finished_at": job.last_finished_at,
        "last_ok_at": job.last_ok_at,
        "last_error": job.last_error,
        "failures": job.failures,  # the number of failed executions since the last success
        "runs": job.runs,  # the number of all executions
        "node": job.node,  # not a Proxmox node: the id of the agent process that last executed the critical job
    }


def is_overdue(job: CriticalJob, now: datetime) -> bool:
    """Return whether the last start or end of the critical job was too long ago (see OVERDUE_AFTER_INTERVALS).

    Before the first execution, none of the three times below is stored, and the critical job is not overdue.
    """
    last_times = [time for time in (job.last_started_at, job.last_finished_at) if time is not None]
    last_time = max(last_times, default=job.due_at)
    max_age = timedelta(seconds=job.interval_s * OVERDUE_AFTER_INTERVALS + OVERDUE_TOLERANCE_S)
    return last_time is not None and now - last_time > max_age
