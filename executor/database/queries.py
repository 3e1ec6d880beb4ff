"""Queries about jobs, runs and critical jobs, each answered from an index. Nothing is written."""

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

_OPEN = {JobStatus.PENDING: PENDING_LITERAL, JobStatus.PROCESSING: PROCESSING_LITERAL}
#: How many candidates are shown for an ambiguous reference.
MAX_CANDIDATES = 6


def find_job(session: Session, reference: str) -> Job | None:
    """Return a job by our id, FulcrumCore's id, or an unambiguous prefix of that id."""
    if not reference:
        return None  # a prefix of every id: an operator's empty shell variable must not select the only job
    if is_row_id(reference) and (job := session.get(Job, int(reference))) is not None:
        return job
    begins = Job.fulcrum_id.startswith(reference.lower(), autoescape=True)
    found = session.scalars(select(Job).where(begins).limit(2)).all()
    return found[0] if len(found) == 1 else None


def get_job(session: Session, job_id: int) -> Job | None:
    """Return a job by our id."""
    return session.get(Job, job_id)


def get_one_job(session: Session, job_id: int) -> Job:
    """Return a job by our id. The session raises DatabaseRefused if it does not exist."""
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
    """Return the newest jobs that match."""
    stmt = select(Job).order_by(Job.id.desc()).limit(limit)
    if statuses:
        stmt = stmt.where(Job.status.in_(statuses))
    if statuses and set(statuses) <= _OPEN.keys():
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
    """Select from the partial indexes, which have few entries. The primary key would lead through every ended job."""
    open_job = aliased(Job)
    selects = [select(open_job.id).where(open_job.status == _OPEN[JobStatus(status)]) for status in statuses]
    return union_all(*selects)


def find_open_job(session: Session, service_id: str) -> Job | None:
    """Return the service's processing job, else its oldest pending one."""
    stmt = select(Job).where(Job.service_id == service_id, Job.status.in_([JobStatus.PENDING, JobStatus.PROCESSING]))
    return session.scalar(stmt.order_by(Job.status == JobStatus.PENDING, Job.id).limit(1))


def count_jobs(session: Session) -> dict[str, int]:
    """Return how many jobs there are by status, and how many reports are due."""
    found = {status.value: 0 for status in JobStatus}
    # One query for each index: rows are large, and a count of the open jobs must not read a million ended ones.
    for condition in (Job.status == PENDING_LITERAL, Job.status == PROCESSING_LITERAL, Job.status.in_(ENDED_LITERALS)):
        found |= dict(session.execute(select(Job.status, func.count()).where(condition).group_by(Job.status)).all())
    due = select(func.count()).select_from(Job).where(Job.report_state == DUE_LITERAL)
    return found | {"reports_due": session.scalar(due) or 0}


def known_fulcrum_ids(session: Session, fulcrum_ids: Sequence[str]) -> set[str]:
    """Return which of these FulcrumCore ids have a row."""
    return set(session.scalars(select(Job.fulcrum_id).where(Job.fulcrum_id.in_(fulcrum_ids))))


def runs_of(session: Session, job_id: int) -> Sequence[Run]:
    """Return the runs of a job, oldest first."""
    return session.scalars(select(Run).where(Run.job_id == job_id).order_by(Run.id)).all()


def find_run(session: Session, ident: str) -> Run | None:
    """Return a run by its ident."""
    return session.scalar(select(Run).where(Run.ident == ident))


def critical_jobs(session: Session) -> Sequence[CriticalJob]:
    """Return the critical jobs, ordered by name."""
    return session.scalars(select(CriticalJob).order_by(CriticalJob.name)).all()


def recent_runs(session: Session, limit: int) -> Sequence[tuple[Run, Job]]:
    """Return the newest runs of all jobs, each with its job."""
    stmt = select(Run, Job).join(Job, Job.id == Run.job_id).order_by(Run.id.desc()).limit(limit)
    return [(run, job) for run, job in session.execute(stmt)]


def fulcrum_ids_with_prefix(session: Session, prefix: str) -> Sequence[str]:
    """Return FulcrumCore's ids of the newest jobs whose id has this prefix."""
    begins = Job.fulcrum_id.startswith(prefix.lower(), autoescape=True)
    return session.scalars(select(Job.fulcrum_id).where(begins).order_by(Job.id.desc()).limit(MAX_CANDIDATES)).all()


def service_ids_with_prefix(session: Session, prefix: str) -> Sequence[str]:
    """Return the ids with this prefix of services that have jobs, the newest job first."""
    begins = Job.service_id.startswith(prefix.lower(), autoescape=True)
    found = select(Job.service_id).where(begins).group_by(Job.service_id).order_by(func.max(Job.id).desc())
    return [service_id for service_id in session.scalars(found.limit(MAX_CANDIDATES)) if service_id]


def queue_depths(session: Session) -> dict[str, int]:
    """Return how many jobs are pending, processing, and ended with a report that is due."""
    open_statuses = (JobStatus.PENDING, JobStatus.PROCESSING)
    stmt = select(Job.status, func.count()).where(Job.status.in_(open_statuses)).group_by(Job.status)
    found = {status.value: 0 for status in open_statuses} | dict(session.execute(stmt).all())
    due = select(func.count()).select_from(Job).where(Job.report_state == ReportState.DUE)
    return found | {"report_due": session.scalar(due) or 0}


def oldest_due_report(session: Session) -> datetime | None:
    """Return when the oldest job with a due report ended."""
    return session.scalar(select(func.min(Job.finished_at)).where(Job.report_state == ReportState.DUE))


def oldest_pending(session: Session) -> datetime | None:
    """Return when the oldest pending job was received."""
    return session.scalar(select(func.min(Job.received_at)).where(Job.status == JobStatus.PENDING))


def busy_services(session: Session, service_id: str | None = None) -> frozenset[str]:
    """Return the services with an open job or a due report.

    One query for each partial index: an OR of the three conditions would read every row of a long history.
    """
    conditions = (
        Job.status == PENDING_LITERAL,
        Job.status == PROCESSING_LITERAL,
        Job.report_state == DUE_LITERAL,
    )
    of_service = Job.service_id.is_not(None) if service_id is None else Job.service_id == service_id
    found = [session.scalars(select(Job.service_id).where(condition, of_service)).all() for condition in conditions]
    return frozenset(each for services in found for each in services if each)
