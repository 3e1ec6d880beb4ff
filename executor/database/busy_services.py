"""Finds the services with a job that has not ended, a report that must be sent, or a playbook run in progress."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from executor.database import manual_runs
from executor.database.literals import DUE_LITERAL, PENDING_LITERAL, PROCESSING_LITERAL
from executor.database.tables.jobs import Job


def find_busy_service_ids(session: Session, service_id: str | None = None) -> frozenset[str]:
    """Return the ids of the services with an open job, a due report, or a run in progress that an operator started.

    An open job is pending or processing. A report is due while the agent must send it, or send it again. With
    `service_id`, check only this service.
    """
    # There is one query for each partial index, because a single query with OR would read the whole table.
    conditions = (
        Job.status == PENDING_LITERAL,
        Job.status == PROCESSING_LITERAL,
        Job.report_state == DUE_LITERAL,
    )
    has_wanted_service = Job.service_id.is_not(None) if service_id is None else Job.service_id == service_id
    busy_ids: set[str | None] = set()
    for condition in conditions:
        busy_ids |= set(session.scalars(select(Job.service_id).where(condition, has_wanted_service)))
    busy_ids |= manual_runs.services_with_run_in_progress(session, service_id)
    return frozenset(busy_id for busy_id in busy_ids if busy_id)
