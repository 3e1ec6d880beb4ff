"""Reads jobs, runs and critical jobs. Each query of jobs uses an index, because the table of jobs may be long."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import CompoundSelect, func, select, union_all
from sqlalchemy.orm import Session, aliased

from executor.database.statements import is_row_id
from executor.database.tables import (
    DUE_LITERAL,
    ENDED_LITERALS,
    PENDING_LITERAL,
    PROCESSING_LITERAL,
    CriticalJob,
    Job,
    Run,
)
from executor.model import JobStatus, ReportState

# An open job is one that has not ended: it is pending or processing.
_OPEN_LITERALS = {JobStatus.PENDING: PENDING_LITERAL, JobStatus.PROCESSING: PROCESSING_LITERAL}
#: The maximum number of ids that a search by prefix returns. A message lists these ids when the prefix is ambiguous.
MAX_CANDIDATES = 6


def find_job(session: Session, reference: str) -> Job | None:
    """Return the job that `reference` names: its row id, its `fulcrum_id`, or a prefix that no other `fulcrum_id` has.

    Returns None if no job, or more than one job, matches.
    """
    if not reference:  # "" is a prefix of every id: `smith jobs cancel "$UNSET"` would cancel the only job
        return None
    if is_row_id(reference) and (job := session.get(Job, int(reference))) is not None:
        return job
    has_prefix = Job.fulcrum_id.startswith(reference.lower(), autoescape=True)
    matches = session.scalars(select(Job).where(has_prefix).limit(2)).all()
    return matches[0] if len(matches) == 1 else None


def get_job(session: Session, job_id: int) -> Job | None:
    """Return the job with this row id, None if it does not exist."""
    return session.get(Job, job_id)


def get_one_job(session: Session, job_id: int) -> Job:
    """Return the job with this row id. The caller's transaction raises DatabaseRefused if it does not exist."""
    return session.get_one(Job, job_id)


def list_jobs(  # noqa: PLR0913 (one filter each)
    session: Session,
    *,
    statuses: Sequence[str] = (),
    action: str | None = None,
    service_id: str | None = None,
    unreported: bool = False,
    limit: int = 50,
) -> Sequence[Job]:
    """Return the newest jobs that match all given filters. `unreported` selects only jobs whose report is due."""
    stmt = select(Job).order_by(Job.id.desc()).limit(limit)
    if statuses:
        stmt = stmt.where(Job.status.in_(statuses))
    if statuses and set(statuses) <= _OPEN_LITERALS.keys():
        stmt = stmt.where(Job.id.in_(_ids_of_open_jobs(statuses)))
    if action:
        stmt = stmt.where(Job.action == action)
    if service_id:
        stmt = stmt.where(Job.service_id == service_id)
    if unreported:
        due = aliased(Job)
        stmt = stmt.where(Job.id.in_(select(due.id).where(due.report_state == DUE_LITERAL)))
    return session.scalars(stmt).all()


def _ids_of_open_jobs(statuses: Sequence[str]) -> CompoundSelect[int]:
    """Return a query for the ids of the jobs with these statuses, which reads only the partial indexes of open jobs.

    These indexes have few entries. Without them, the database would search the table from the newest row on, and would
    read many ended jobs before it reached an old open job.
    """
    open_job = aliased(Job)
    selects = [select(open_job.id).where(open_job.status == _OPEN_LITERALS[JobStatus(status)]) for status in statuses]
    return union_all(*selects)


def find_open_job(session: Session, service_id: str) -> Job | None:
    """Return the service's processing job, else its oldest pending job, else None."""
    stmt = select(Job).where(Job.service_id == service_id, Job.status.in_([JobStatus.PENDING, JobStatus.PROCESSING]))
    return session.scalar(stmt.order_by(Job.status == JobStatus.PENDING, Job.id).limit(1))


def count_jobs(session: Session) -> dict[str, int]:
    """Return the number of jobs in each status, and under the key `reports_due` the number of due reports."""
    counts = {status.value: 0 for status in JobStatus}
    # The database answers each of these queries from a partial index. One query for all statuses would read every row
    # of the table.
    for condition in (Job.status == PENDING_LITERAL, Job.status == PROCESSING_LITERAL, Job.status.in_(ENDED_LITERALS)):
        counts |= dict(session.execute(select(Job.status, func.count()).where(condition).group_by(Job.status)).all())
    return counts | {"reports_due": count_due_reports(session)}


def count_due_reports(session: Session) -> int:
    """Return the number of ended jobs whose report is due."""
    stmt = select(func.count()).select_from(Job).where(Job.report_state == DUE_LITERAL)
    return session.scalar(stmt) or 0


def known_fulcrum_ids(session: Session, fulcrum_ids: Sequence[str]) -> set[str]:
    """Return the subset of `fulcrum_ids` for which the table of jobs has a row."""
    return set(session.scalars(select(Job.fulcrum_id).where(Job.fulcrum_id.in_(fulcrum_ids))))


def runs_of(session: Session, job_id: int) -> Sequence[Run]:
    """Return the runs of a job, oldest first."""
    return session.scalars(select(Run).where(Run.job_id == job_id).order_by(Run.id)).all()


def find_run(session: Session, ident: str) -> Run | None:
    """Return the run with this ident, None if it does not exist."""
    return session.scalar(select(Run).where(Run.ident == ident))


def critical_jobs(session: Session) -> Sequence[CriticalJob]:
    """Return the critical jobs, ordered by name."""
    return session.scalars(select(CriticalJob).order_by(CriticalJob.name)).all()


def recent_runs(session: Session, limit: int) -> Sequence[tuple[Run, Job]]:
    """Return the newest runs of all jobs, each with its job."""
    stmt = select(Run, Job).join(Job, Job.id == Run.job_id).order_by(Run.id.desc()).limit(limit)
    return [(run, job) for run, job in session.execute(stmt)]


def fulcrum_ids_with_prefix(session: Session, prefix: str) -> Sequence[str]:
    """Return the `fulcrum_id` of each job that has this prefix, the newest job first, up to MAX_CANDIDATES."""
    has_prefix = Job.fulcrum_id.startswith(prefix.lower(), autoescape=True)
    return session.scalars(select(Job.fulcrum_id).where(has_prefix).order_by(Job.id.desc()).limit(MAX_CANDIDATES)).all()


def service_ids_with_prefix(session: Session, prefix: str) -> Sequence[str]:
    """Return the service ids with this prefix, that of the service with the newest job first, up to MAX_CANDIDATES."""
    has_prefix = Job.service_id.startswith(prefix.lower(), autoescape=True)
    stmt = select(Job.service_id).where(has_prefix).group_by(Job.service_id).order_by(func.max(Job.id).desc())
    return [service_id for service_id in session.scalars(stmt.limit(MAX_CANDIDATES)) if service_id]


def count_open_jobs(session: Session) -> dict[str, int]:
    """Return the number of pending jobs and the number of processing jobs, by status."""
    open_statuses = (JobStatus.PENDING, JobStatus.PROCESSING)
    stmt = select(Job.status, func.count()).where(Job.status.in_(open_statuses)).group_by(Job.status)
    return {status.value: 0 for status in open_statuses} | dict(session.execute(stmt).all())


def oldest_due_report(session: Session) -> datetime | None:
    """Return the earliest time at which a job with a due report ended, None if no report is due."""
    return session.scalar(select(func.min(Job.finished_at)).where(Job.report_state == ReportState.DUE))


def oldest_pending(session: Session) -> datetime | None:
    """Return the earliest time at which a pending job was received, None if no job is pending."""
    return session.scalar(select(func.min(Job.received_at)).where(Job.status == JobStatus.PENDING))


def busy_services(session: Session, service_id: str | None = None) -> frozenset[str]:
    """Return the ids of the services with an open job or a due report; with `service_id`, look only at this service.

    The database answers each of the three queries from a partial index. One query with all three conditions, joined by
    OR, would read every row of the table.
    """
    conditions = (
        Job.status == PENDING_LITERAL,
        Job.status == PROCESSING_LITERAL,
        Job.report_state == DUE_LITERAL,
    )
    of_service = Job.service_id.is_not(None) if service_id is None else Job.service_id == service_id
    results = [session.scalars(select(Job.service_id).where(condition, of_service)).all() for condition in conditions]
    return frozenset(service for services in results for service in services if service)
