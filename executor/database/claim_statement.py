"""The statement of `job_queue.claim`: one UPDATE that chooses a pending job and takes ownership of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, true, update
from sqlalchemy.orm import aliased

from executor.database.tables import PENDING_LITERAL, PROCESSING_LITERAL, Job, db_now
from executor.model import PROBATION_CRASHES, JobStatus


@dataclass(frozen=True)
class TenantFilter:
    """Limits a claim to the jobs of some tenants, or of all others. Without tenants it matches every job."""

    tenants: tuple[str, ...] = ()
    is_exclusion: bool = False

    def matches(self, row: Any) -> ColumnElement[bool]:
        """Return the condition for an alias of `Job`."""
        if not self.tenants:
            return true()
        if self.is_exclusion:
            return or_(row.tenant_id.is_(None), row.tenant_id.not_in(self.tenants))
        condition: ColumnElement[bool] = row.tenant_id.in_(self.tenants)
        return condition


@lru_cache(maxsize=512)  # building the statement takes ten times as long as running it
def claim_statement(owner: str, lease_s: float, max_creates: int | None, tenants: TenantFilter) -> Any:
    """Return the UPDATE that claims the next job and returns its row.

    A job on probation (see PROBATION_CRASHES) runs alone: it is claimed only when this owner has no other job, and
    while it runs this owner claims nothing.
    """
    own, suspect = aliased(Job), aliased(Job)
    has_job = select(own.id).where(own.status == PROCESSING_LITERAL, own.owner == owner).exists()
    has_suspect = (
        select(suspect.id)
        .where(suspect.status == PROCESSING_LITERAL, suspect.owner == owner, suspect.crashes >= PROBATION_CRASHES)
        .exists()
    )
    return (
        update(Job)
        .where(Job.id == _next_candidate(max_creates, tenants).scalar_subquery(), Job.status == JobStatus.PENDING)
        .where(or_(Job.crashes < PROBATION_CRASHES, ~has_job), ~has_suspect)
        .values(
            status=JobStatus.PROCESSING,
            owner=owner,
            epoch=Job.epoch + 1,
            attempt=Job.attempt + 1,
            lease_until=db_now(lease_s),
            available_at=None,
        )
        .returning(Job)
        .execution_options(populate_existing=True)
    )


def _next_candidate(max_creates: int | None, tenants: TenantFilter) -> Select[int]:
    """Select the oldest matching job, unless a job of another tenant has a higher priority."""
    candidate, first = aliased(Job), aliased(Job)
    highest = (
        select(first.priority).where(_is_claimable(first, max_creates)).order_by(*_claim_order(first)).limit(1)
    ).scalar_subquery()
    return (
        select(candidate.id)
        .where(_is_claimable(candidate, max_creates), tenants.matches(candidate), candidate.priority >= highest)
        .order_by(*_claim_order(candidate))
        .limit(1)
        .with_for_update(skip_locked=True, of=candidate)
    )


def _claim_order(row: Any) -> tuple[Any, ...]:
    return row.priority.desc(), row.core_created_at, row.id


def _is_claimable(row: Any, max_creates: int | None) -> ColumnElement[bool]:
    """Pending, backoff over, no other job of the service processing, and not above the limit of creates."""
    running = aliased(Job)
    busy = select(running.id).where(running.status == PROCESSING_LITERAL, running.service_id == row.service_id)
    is_due = or_(row.available_at.is_(None), row.available_at <= db_now())
    condition = and_(row.status == PENDING_LITERAL, is_due, ~busy.exists())
    if max_creates is None:
        return condition
    create = aliased(Job)
    running_creates = (
        select(func.count())
        .select_from(create)
        .where(create.status == PROCESSING_LITERAL, create.action == "create")
        .scalar_subquery()
    )
    return and_(condition, or_(row.action != "create", running_creates < max_creates))
