"""Reads jobs. Each query uses an index, because the table of jobs may be long.

The report of an ended job is due while the agent must send it, or send it again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import CompoundSelect, func, select, union_all
from sqlalchemy.exc import NoResultFound

from executor.database.core_tables import jobs, read_row, read_rows  # tables for SQLAlchemy Core
from executor.database.literals import (
    CLAIMED_ELSEWHERE_LITERAL,
    DUE_LITERAL,
    ENDED_LITERALS,
    PENDING_LITERAL,
    PROCESSING_LITERAL,
)
from executor.database.statements import could_be_id_prefix, fits_integer_column
from executor.model import SETTLED_REPORT_STATES, JobStatus

if TYPE_CHECKING:  # `Job` is slow to import. Values of this type are read-only rows with the attributes of `Job`.
    # A Reader is a connection or a session.
    from executor.database.core_tables import Reader
    from executor.database.tables.jobs import Job

#: The SQL literal of each status of an open job. An open job is pending or processing. SQLite uses a partial index only
#: if the statement contains a literal.
_OPEN_STATUS_LITERALS = {JobStatus.PENDING: PENDING_LITERAL, JobStatus.PROCESSING: PROCESSING_LITERAL}
#: The maximum number of ids that a search for a prefix returns. If several ids match, an error message lists them.
MAX_IDS_WITH_PREFIX = 6


def find_job(reader: Reader, reference: str) -> Job | None:
    """Return the job that `reference` names. `reference` is a row id, or a `fulcrum_id` or its beginning.

    Returns None if no job matches, or if more than one job matches.
    """
    if fits_integer_column(reference) and (job := get_job(reader, int(reference))) is not None:
        return job
    if not could_be_id_prefix(reference):
        return None
    has_prefix = jobs.c.fulcrum_id.startswith(reference.lower(), autoescape=True)
    matches = read_rows(reader, select(jobs).where(has_prefix).limit(2))
    return matches[0] if len(matches) == 1 else None


def get_job(reader: Reader, job_id: int) -> Job | None:
    """Return the job with this row id, or None if it does not exist."""
    if not fits_integer_column(str(job_id)):
        return None
    job: Job | None = read_row(reader, select(jobs).where(jobs.c.id == job_id))
    return job


def get_one_job(reader: Reader, job_id: int) -> Job:
    """Return the job with this row id. If it does not exist, raise NoResultFound."""
    job = get_job(reader, job_id)
    if job is None:
        raise NoResultFound(f"there is no job {job_id}")
    return job


def list_jobs(  # noqa: PLR0913 (one parameter for each filter)
    reader: Reader,
    *,
    statuses: Sequence[str] = (),
    action: str | None = None,
    service_ids: Collection[str] | None = None,
    only_unreported: bool = False,
    since: datetime | None = None,
    before_id: int | None = None,
    limit: int = 50,
) -> Sequence[Job]:
    """Return the newest jobs that match all filters.

    With `only_unreported`, return only jobs whose report is due. With `since`, return only jobs that were received
    at this time or later. With `before_id`, return only jobs whose row id is lower.
    """
    stmt = select(jobs).order_by(jobs.c.id.desc()).limit(limit)
    if statuses:
        stmt = stmt.where(jobs.c.status.in_(statuses))
        if set(statuses) <= _OPEN_STATUS_LITERALS.keys():
            stmt = stmt.where(jobs.c.id.in_(_ids_of_open_jobs(statuses)))
        elif set(statuses) == {JobStatus.FAILED}:
            # The condition with ENDED_LITERALS lets the database use the index of ended jobs. The index contains the
            # status, so the database reads no row of a completed job.
            ended_jobs = jobs.alias()
            is_failed = ended_jobs.c.status.in_(ENDED_LITERALS) & (ended_jobs.c.status == JobStatus.FAILED)
            stmt = stmt.where(jobs.c.id.in_(select(ended_jobs.c.id).where(is_failed)))
    if action:
        stmt = stmt.where(jobs.c.action == action)
    if service_ids is not None:
        stmt = stmt.where(jobs.c.service_id.in_(service_ids))
    if before_id is not None:
        stmt = stmt.where(jobs.c.id < before_id)
    if only_unreported:
        due_jobs = jobs.alias()
        stmt = stmt.where(jobs.c.id.in_(select(due_jobs.c.id).where(due_jobs.c.report_state == DUE_LITERAL)))
    if since is not None:
        # Rows are inserted in the order in which the jobs arrive. So the search for the newest job before `since` reads
        # only this job and the jobs that were received later, and the column `received_at` needs no index.
        newest_job_before = select(jobs.c.id).where(jobs.c.received_at < since).order_by(jobs.c.id.desc()).limit(1)
        stmt = stmt.where(jobs.c.id > (reader.scalar(newest_job_before) or 0))
    return read_rows(reader, stmt)


def _ids_of_open_jobs(statuses: Sequence[str]) -> CompoundSelect[int]:
    """Return a query for the ids of the jobs with these statuses, which must be statuses of open jobs.

    The query reads only the partial indexes of open jobs, which have few entries. Without this query, the database
    would start at the newest row, and would read many ended jobs before it found an old open job.
    """
    open_jobs = jobs.alias()
    selects = [
        select(open_jobs.c.id).where(open_jobs.c.status == _OPEN_STATUS_LITERALS[JobStatus(status)])
        for status in statuses
    ]
    return union_all(*selects)


def find_open_job(reader: Reader, service_id: str) -> Job | None:
    """Return the service's processing job, or else its oldest pending job, or None if it has neither."""
    stmt = select(jobs).where(
        jobs.c.service_id == service_id, jobs.c.status.in_([JobStatus.PENDING, JobStatus.PROCESSING])
    )
    is_pending = jobs.c.status == JobStatus.PENDING  # SQL sorts false before true, so the processing job is first
    job: Job | None = read_row(reader, stmt.order_by(is_pending, jobs.c.id).limit(1))
    return job


def count_jobs(reader: Reader, *, should_count_ended_jobs: bool = True) -> dict[str, int]:
    """Return the number of jobs in each status. The key `reports_due` has the number of due reports.

    If `should_count_ended_jobs` is False, ended jobs are not counted, and the numbers for their statuses are 0. This is
    much faster if there are many ended jobs.
    """
    counts = {status.value: 0 for status in JobStatus}
    # There is one query for each partial index, because a single query for all statuses would read the whole table.
    open_conditions = (jobs.c.status == PENDING_LITERAL, jobs.c.status == PROCESSING_LITERAL)
    ended_conditions = (jobs.c.status.in_(ENDED_LITERALS),) if should_count_ended_jobs else ()
    for condition in (*open_conditions, *ended_conditions):
        stmt = select(jobs.c.status, func.count()).where(condition).group_by(jobs.c.status)
        counts |= dict(reader.execute(stmt).all())
    return counts | {"reports_due": count_due_reports(reader)}


def count_due_reports(reader: Reader) -> int:
    """Return the number of ended jobs whose report is due."""
    stmt = select(func.count()).select_from(jobs).where(jobs.c.report_state == DUE_LITERAL)
    return reader.scalar(stmt) or 0


def stored_fulcrum_ids(reader: Reader, fulcrum_ids: Sequence[str]) -> set[str]:
    """Return the ids in `fulcrum_ids` for which the table of jobs has a row."""
    return set(reader.scalars(select(jobs.c.fulcrum_id).where(jobs.c.fulcrum_id.in_(fulcrum_ids))))


def settled_fulcrum_ids(reader: Reader, fulcrum_ids: Sequence[str]) -> list[str]:
    """Return the ids in `fulcrum_ids` of settled jobs.

    A settled job has ended, and the agent sends no report: FulcrumCore has acknowledged or refused the report, or does
    not expect a report from this agent.
    """
    is_settled = jobs.c.report_state.in_(SETTLED_REPORT_STATES)
    return list(reader.scalars(select(jobs.c.fulcrum_id).where(jobs.c.fulcrum_id.in_(fulcrum_ids), is_settled)))


def fulcrum_ids_with_prefix(reader: Reader, prefix: str) -> Sequence[str]:
    """Return at most MAX_IDS_WITH_PREFIX values of `fulcrum_id` that have this prefix. The newest job is first."""
    if not could_be_id_prefix(prefix):
        return []
    has_prefix = jobs.c.fulcrum_id.startswith(prefix.lower(), autoescape=True)
    stmt = select(jobs.c.fulcrum_id).where(has_prefix).order_by(jobs.c.id.desc())
    return reader.scalars(stmt.limit(MAX_IDS_WITH_PREFIX)).all()


def service_ids_with_prefix(reader: Reader, prefix: str) -> Sequence[str]:
    """Return at most MAX_IDS_WITH_PREFIX service ids with this prefix. The service with the newest job is first."""
    has_prefix = jobs.c.service_id.startswith(prefix.lower(), autoescape=True)
    stmt = select(jobs.c.service_id).where(has_prefix).group_by(jobs.c.service_id).order_by(func.max(jobs.c.id).desc())
    return [service_id for service_id in reader.scalars(stmt.limit(MAX_IDS_WITH_PREFIX)) if service_id]


def count_pending_and_processing_jobs(reader: Reader) -> dict[str, int]:
    """Return the number of jobs in each of the statuses pending and processing."""
    open_statuses = (JobStatus.PENDING, JobStatus.PROCESSING)
    stmt = select(jobs.c.status, func.count()).where(jobs.c.status.in_(open_statuses)).group_by(jobs.c.status)
    return {status.value: 0 for status in open_statuses} | dict(reader.execute(stmt).all())


def jobs_with_postponed_report(reader: Reader, limit: int) -> Sequence[Job]:
    """Return at most `limit` jobs with a postponed report. The job that ended first is first.

    A report is postponed if it is due and at least one attempt to send it has failed.
    """
    stmt = select(jobs).where(jobs.c.report_state == DUE_LITERAL, jobs.c.report_attempts > 0)
    return read_rows(reader, stmt.order_by(jobs.c.finished_at, jobs.c.id).limit(limit))


def jobs_claimed_elsewhere(reader: Reader, limit: int) -> Sequence[Job]:
    """Return at most `limit` jobs that another installation has claimed, oldest first.

    The other installation uses the token of this agent, but its own database. In the database that this query reads,
    the jobs have the status failed. They are open only at FulcrumCore.
    """
    stmt = select(jobs).where(jobs.c.report_state == CLAIMED_ELSEWHERE_LITERAL)
    return read_rows(reader, stmt.order_by(jobs.c.finished_at, jobs.c.id).limit(limit))


def count_jobs_open_only_at_fulcrum(reader: Reader) -> dict[str, int]:
    """Return how many jobs are open at FulcrumCore although they have ended in this database.

    An attempt to report such a job has failed, or another installation has claimed the job. The keys are values
    of the label `cause` of the Prometheus metric that shows the numbers.
    """
    is_postponed = (jobs.c.report_state == DUE_LITERAL) & (jobs.c.report_attempts > 0)
    is_claimed_elsewhere = jobs.c.report_state == CLAIMED_ELSEWHERE_LITERAL
    conditions = {"report_not_accepted": is_postponed, "claimed_elsewhere": is_claimed_elsewhere}
    count_jobs_where = select(func.count()).select_from(jobs).where
    return {cause: reader.scalar(count_jobs_where(condition)) or 0 for cause, condition in conditions.items()}


def jobs_by_fulcrum_id(reader: Reader, fulcrum_ids: Sequence[str]) -> dict[str, Job]:
    """Return the rows of the jobs with these ids. The keys are the values of `fulcrum_id`."""
    found_jobs = read_rows(reader, select(jobs).where(jobs.c.fulcrum_id.in_(fulcrum_ids)))
    return {job.fulcrum_id: job for job in found_jobs}


def agent_id_of_newest_job(reader: Reader) -> str | None:
    """Return FulcrumCore's id of the agent to which the newest job's service belongs, or None if no id is stored.

    The column `service` contains the job's service as JSON from FulcrumCore. Jobs without this JSON are skipped.
    """
    newest_service = select(jobs.c.service).where(jobs.c.service.is_not(None)).order_by(jobs.c.id.desc()).limit(1)
    service = reader.scalar(newest_service) or {}
    return str(service["agentId"]).lower() if service.get("agentId") else None


def oldest_due_report_time(reader: Reader) -> datetime | None:
    """Return the earliest time at which a job with a due report ended, or None if no report is due."""
    time: datetime | None = reader.scalar(
        select(func.min(jobs.c.finished_at)).where(jobs.c.report_state == DUE_LITERAL)
    )
    return time


def oldest_pending_time(reader: Reader) -> datetime | None:
    """Return the earliest time at which a pending job was received, or None if no job is pending."""
    time: datetime | None = reader.scalar(select(func.min(jobs.c.received_at)).where(jobs.c.status == PENDING_LITERAL))
    return time


def oldest_pending_jobs(reader: Reader, limit: int) -> Sequence[Job]:
    """Return at most `limit` pending jobs, in the order in which they were received."""
    stmt = select(jobs).where(jobs.c.status == PENDING_LITERAL).order_by(jobs.c.received_at, jobs.c.id)
    return read_rows(reader, stmt.limit(limit))


def services_of_jobs_ended_since(reader: Reader, moment: datetime) -> frozenset[str]:
    """Return the ids of the services with a job that ended at `moment` or later."""
    stmt = select(jobs.c.service_id).where(jobs.c.status.in_(ENDED_LITERALS), jobs.c.finished_at >= moment)
    return frozenset(service_id for service_id in reader.scalars(stmt) if service_id)
