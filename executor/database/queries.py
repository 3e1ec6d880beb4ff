"""Reads jobs, runs and critical jobs. Each query uses an index, because the table of jobs may be long."""

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

_OPEN_LITERALS = {JobStatus.PENDING: PENDING_LITERAL, JobStatus.PROCESSING: PROCESSING_LITERAL}
#: How many ids an ambiguous prefix returns at most, for a message to the operator.
MAX_CANDIDATES = 6


def find_job(session: Session, reference: str) -> Job | None:
    """Return the job with this row id, this `fulcrum_id`, or a `fulcrum_id` of which only this job has the prefix."""
    if not reference:  # every id starts with "", so `smith jobs cancel "$UNSET"` would cancel the only job
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
    """Return the job with this row id. The session raises DatabaseRefused if it does not exist."""
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
    """Return the newest jobs that match all filters."""
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
    """Select the ids of the jobs with these statuses from the partial indexes, which have few entries.

    A search by descending primary key would read every ended job before it reached an old open one.
    """
    open_job = aliased(Job)
    selects = [select(open_job.id).where(open_job.status == _OPEN_LITERALS[JobStatus(status)]) for status in statuses]
    return union_all(*selects)


def find_open_job(session: Session, service_id: str) -> Job | None:
    """Return the service's processing job, else its oldest pending one."""
    stmt = select(Job).where(Job.service_id == service_id, Job.status.in_([JobStatus.PENDING, JobStatus.PROCESSING]))
    return session.scalar(stmt.order_by(Job.status == JobStatus.PENDING, Job.id).limit(1))


def count_jobs(session: Session) -> dict[str, int]:
    """Return the number of jobs in each status, and as `reports_due` the number of due reports."""
    counts = {status.value: 0 for status in JobStatus}
    # Each query is answered from a partial index; one query for all statuses would read every row of the table.
    for condition in (Job.status == PENDING_LITERAL, Job.status == PROCESSING_LITERAL, Job.status.in_(ENDED_LITERALS)):
        counts |= dict(session.execute(select(Job.status, func.count()).where(condition).group_by(Job.status)).all())
    return counts | {"reports_due": count_due_reports(session)}


def count_due_reports(session: Session) -> int:
    """Return the number of ended jobs whose report is due."""
    stmt = select(func.count()).select_from(Job).where(Job.report_state == DUE_LITERAL)
    return session.scalar(stmt) or 0


def known_fulcrum_ids(session: Session, fulcrum_ids: Sequence[str]) -> set[str]:
    """Return those of these ids that have a row."""
    return set(session.scalars(select(Job.fulcrum_id).where(Job.fulcrum_id.in_(fulcrum_ids))))


def runs_of(session: Session, job_id: int) -> Sequence[Run]:
    """Return the runs of a job, oldest first."""
    return session.scalars(select(Run).where(Run.job_id == job_id).order_by(Run.id)).all()


def find_run(session: Session, ident: str) -> Run | None:
    """Return the run with this ident."""
    return session.scalar(select(Run).where(Run.ident == ident))


def critical_jobs(session: Session) -> Sequence[CriticalJob]:
    """Return the critical jobs, ordered by name."""
    return session.scalars(select(CriticalJob).order_by(CriticalJob.name)).all()


def recent_runs(session: Session, limit: int) -> Sequence[tuple[Run, Job]]:
    """Return the newest runs of all jobs, each with its job."""
    stmt = select(Run, Job).join(Job, Job.id == Run.job_id).order_by(Run.id.desc()).limit(limit)
    return [(run, job) for run, job in session.execute(stmt)]


def fulcrum_ids_with_prefix(session: Session, prefix: str) -> Sequence[str]:
    """Return the `fulcrum_id` of the newest jobs whose `fulcrum_id` has this prefix."""
    has_prefix = Job.fulcrum_id.startswith(prefix.lower(), autoescape=True)
    return session.scalars(select(Job.fulcrum_id).where(has_prefix).order_by(Job.id.desc()).limit(MAX_CANDIDATES)).all()


def service_ids_with_prefix(session: Session, prefix: str) -> Sequence[str]:
    """Return the ids of services with this prefix, the service with the newest job first."""
    has_prefix = Job.service_id.startswith(prefix.lower(), autoescape=True)
    stmt = select(Job.service_id).where(has_prefix).group_by(Job.service_id).order_by(func.max(Job.id).desc())
    return [service_id for service_id in session.scalars(stmt.limit(MAX_CANDIDATES)) if service_id]


def count_open_jobs(session: Session) -> dict[str, int]:
    """Return the number of pending and of processing jobs."""
    open_statuses = (JobStatus.PENDING, JobStatus.PROCESSING)
    stmt = select(Job.status, func.count()).where(Job.status.in_(open_statuses)).group_by(Job.status)
    return {status.value: 0 for status in open_statuses} | dict(session.execute(stmt).all())


def oldest_due_report(session: Session) -> datetime | None:
    """Return when the oldest job with a due report ended."""
    return session.scalar(select(func.min(Job.finished_at)).where(Job.report_state == ReportState.DUE))


def oldest_pending(session: Session) -> datetime | None:
    """Return when the oldest pending job was received."""
    return session.scalar(select(func.min(Job.received_at)).where(Job.status == JobStatus.PENDING))


def busy_services(session: Session, service_id: str | None = None) -> frozenset[str]:
    """Return the services with an open job or a due report.

    Each query is answered from a partial index; an OR of the three conditions would read every row of the table.
    """
    conditions = (
        Job.status == PENDING_LITERAL,
        Job.status == PROCESSING_LITERAL,
        Job.report_state == DUE_LITERAL,
    )
    of_service = Job.service_id.is_not(None) if service_id is None else Job.service_id == service_id
    results = [session.scalars(select(Job.service_id).where(condition, of_service)).all() for condition in conditions]
    return frozenset(service for services in results for service in services if service)
