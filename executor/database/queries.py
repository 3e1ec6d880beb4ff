"""Questions about jobs, runs and critical jobs. Reads only, each answered from an index."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import CompoundSelect, func, select, union_all
from sqlalchemy.orm import Session, aliased

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
#: More candidates than this are not worth naming.
CANDIDATES = 6


def find_job(session: Session, reference: str) -> Job | None:
    """Return a job by our number, FulcrumCore's id, or an unambiguous beginning of that id."""
    if not reference:
        return None  # the beginning of every id: an operator's empty variable must not pick the only job
    if _is_number(reference) and (job := session.get(Job, int(reference))) is not None:
        return job
    begins = Job.fulcrum_id.startswith(reference.lower(), autoescape=True)
    found = session.scalars(select(Job).where(begins).limit(2)).all()
    return found[0] if len(found) == 1 else None


def get_job(session: Session, job_id: int) -> Job | None:
    """Return a job by our number."""
    return session.get(Job, job_id)


def _is_number(reference: str) -> bool:
    """Tell our numbers from everything else that has digits: other scripts' ones, and numbers beyond any column."""
    return reference.isascii() and reference.isdecimal() and len(reference) < 10


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
    """Select from the partial indexes, which have few rows; the primary key could lead through every ended job."""
    open_job = aliased(Job)
    selects = [select(open_job.id).where(open_job.status == _OPEN[JobStatus(status)]) for status in statuses]
    return union_all(*selects)


def open_job(session: Session, service_id: str) -> Job | None:
    """Return the service's job that has not ended, the one under way before one that waits."""
    stmt = select(Job).where(Job.service_id == service_id, Job.status.in_([JobStatus.PENDING, JobStatus.PROCESSING]))
    return session.scalar(stmt.order_by(Job.status == JobStatus.PENDING, Job.id).limit(1))


def count_jobs(session: Session) -> dict[str, int]:
    """Return how many jobs there are by status, and how many reports are due."""
    found = {status.value: 0 for status in JobStatus}
    # One question an index each: rows are fat, and a million ended ones must not be read to count the open ones.
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
    """Return the critical jobs by name."""
    return session.scalars(select(CriticalJob).order_by(CriticalJob.name)).all()


def recent_runs(session: Session, limit: int) -> Sequence[tuple[Run, Job]]:
    """Return the newest runs of all jobs, each with its job."""
    stmt = select(Run, Job).join(Job, Job.id == Run.job_id).order_by(Run.id.desc()).limit(limit)
    return [(run, job) for run, job in session.execute(stmt)]


def fulcrum_ids_beginning(session: Session, beginning: str) -> Sequence[str]:
    """Return FulcrumCore's ids that begin so."""
    begins = Job.fulcrum_id.startswith(beginning.lower(), autoescape=True)
    return session.scalars(select(Job.fulcrum_id).where(begins).order_by(Job.id.desc()).limit(CANDIDATES)).all()


def service_ids_beginning(session: Session, beginning: str) -> Sequence[str]:
    """Return the ids of services with jobs that begin so."""
    begins = Job.service_id.startswith(beginning.lower(), autoescape=True)
    found = select(Job.service_id).where(begins).group_by(Job.service_id).order_by(func.max(Job.id).desc())
    return [service_id for service_id in session.scalars(found.limit(CANDIDATES)) if service_id]


def queue_depths(session: Session) -> dict[str, int]:
    """Return how many jobs wait, are under way, and have an outcome that FulcrumCore does not know yet."""
    open_statuses = (JobStatus.PENDING, JobStatus.PROCESSING)
    stmt = select(Job.status, func.count()).where(Job.status.in_(open_statuses)).group_by(Job.status)
    found = {status.value: 0 for status in open_statuses} | dict(session.execute(stmt).all())
    due = select(func.count()).select_from(Job).where(Job.report_state == ReportState.DUE)
    return found | {"report_due": session.scalar(due) or 0}


def oldest_report(session: Session) -> datetime | None:
    """Return when the oldest job ended whose outcome FulcrumCore does not know."""
    return session.scalar(select(func.min(Job.finished_at)).where(Job.report_state == ReportState.DUE))


def oldest_waiting(session: Session) -> datetime | None:
    """Return when the oldest waiting job arrived."""
    return session.scalar(select(func.min(Job.received_at)).where(Job.status == JobStatus.PENDING))


def busy_services(session: Session, service_id: str | None = None) -> frozenset[str]:
    """Return the services with a job that is open, or whose result FulcrumCore does not have yet.

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
