"""Questions that only the metrics ask, each answered from an index: a scrape must stay cheap at a million rows."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from executor.database.engine import Job, Mapping
from executor.model import JobStatus, MappingState, ReportState


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


def mapping_counts(session: Session) -> dict[str, int]:
    """Return how many VMs there are by state; deleted ones are history and are not counted."""
    found = {state.value: 0 for state in MappingState if state is not MappingState.DELETED}
    alive = Mapping.state != MappingState.DELETED
    return found | dict(session.execute(select(Mapping.state, func.count()).where(alive).group_by(Mapping.state)).all())
