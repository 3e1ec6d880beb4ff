"""Returns counts and durations of recently ended jobs, and the last failed jobs, for the overview page and `smith top`.

Each query reads an index of ended jobs. SQLite uses this index only if the statement contains the statuses of ended
jobs as SQL literals (ENDED_LITERALS), not as parameters. A `Reader` is a connection or session of SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import func, literal, select, union_all

from executor.database.core_tables import jobs, read_rows
from executor.database.literals import ENDED_LITERALS
from executor.model import JobStatus

if TYPE_CHECKING:  # Not imported at run time, because the import would load SQLAlchemy's ORM, which is slow.
    from executor.database.core_tables import Reader
    from executor.database.tables.jobs import Job

HOUR = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class HourCounts:
    """The number of jobs that ended in one hour, by their status."""

    start: datetime
    completed: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class JobDurations:
    """How long one ended job waited for its last run, and how long this run took."""

    wait_s: float  #: from the time when the agent received the job to the start of the job's last run
    run_s: float  #: from the start of the job's last run to the end of the job


def ended_job_counts_by_hour(reader: Reader, now: datetime, *, hours: int) -> list[HourCounts]:
    """Return the counts of the last `hours` hours, oldest first. The last item is the current hour."""
    first_hour = now.replace(minute=0, second=0, microsecond=0) - HOUR * (hours - 1)
    starts = [first_hour + HOUR * hour_index for hour_index in range(hours)]
    # There is one query for each hour, because SQLite and PostgreSQL have no common function that rounds a time.
    queries = [
        select(literal(hour_index), jobs.c.status, func.count())
        .where(jobs.c.status.in_(ENDED_LITERALS), jobs.c.finished_at >= start, jobs.c.finished_at < start + HOUR)
        .group_by(jobs.c.status)
        for hour_index, start in enumerate(starts)
    ]
    counts = {(hour_index, status): count for hour_index, status, count in reader.execute(union_all(*queries))}
    return [
        HourCounts(
            start=start,
            completed=counts.get((hour_index, JobStatus.COMPLETED), 0),
            failed=counts.get((hour_index, JobStatus.FAILED), 0),
        )
        for hour_index, start in enumerate(starts)
    ]


def last_failed_jobs(reader: Reader, limit: int) -> Sequence[Job]:
    """Return the rows of the jobs that failed last, newest first. A row has the attributes of `Job`."""
    # The condition on all ended jobs excludes no failed job. It is there because the database uses the index
    # `ix_jobs_ended`, which is sorted by time, only for a statement with this condition.
    is_failed = jobs.c.status.in_(ENDED_LITERALS) & (jobs.c.status == JobStatus.FAILED)
    return read_rows(reader, select(jobs).where(is_failed).order_by(jobs.c.finished_at.desc()).limit(limit))


def last_job_durations(reader: Reader, *, since: datetime, limit: int) -> Sequence[JobDurations]:
    """Return the durations of at most `limit` jobs that ended at `since` or later. The latest end is first."""
    stmt = (
        select(jobs.c.received_at, jobs.c.started_at, jobs.c.finished_at)
        .where(jobs.c.status.in_(ENDED_LITERALS), jobs.c.finished_at >= since)
        .order_by(jobs.c.finished_at.desc())
        .limit(limit)
    )
    return [
        JobDurations(
            wait_s=(started_at - received_at).total_seconds(), run_s=(finished_at - started_at).total_seconds()
        )
        for received_at, started_at, finished_at in reader.execute(stmt)
        if started_at is not None and finished_at is not None
    ]
