"""Builds the SQL statement of `job_queue.claim`: one UPDATE that selects a pending job and claims it for an owner."""

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
    """Limits a claim to the jobs of `tenants`. With `is_exclusion`, it limits a claim to all other jobs instead.

    A filter whose `tenants` is empty matches every job.
    """

    tenants: tuple[str, ...] = ()
    is_exclusion: bool = False

    def condition(self, row: Any) -> ColumnElement[bool]:
        """Return the SQL condition; `row` is an alias of `Job`."""
        if not self.tenants:
            return true()
        if self.is_exclusion:
            return or_(row.tenant_id.is_(None), row.tenant_id.not_in(self.tenants))
        is_listed: ColumnElement[bool] = row.tenant_id.in_(self.tenants)
        return is_listed


@lru_cache(maxsize=512)  # building the statement takes ten times as long as running it
def claim_statement(owner: str, lease_s: float, max_creates: int | None, tenants: TenantFilter) -> Any:
    """Return the UPDATE that claims the next job for the owner and returns the job's row.

    A job on probation (see PROBATION_CRASHES) runs alone: an owner claims such a job only while the owner has no other
    job, and claims no other job while the job on probation runs. `max_creates` is that of `job_queue.claim`.
    """
    owned = aliased(Job)
    owned_jobs = select(owned.id).where(owned.status == PROCESSING_LITERAL, owned.owner == owner)
    owner_has_job = owned_jobs.exists()
    owner_has_probation_job = owned_jobs.where(owned.crashes >= PROBATION_CRASHES).exists()
    return (
        update(Job)
        .where(Job.id == _next_candidate(max_creates, tenants).scalar_subquery(), Job.status == JobStatus.PENDING)
        .where(or_(Job.crashes < PROBATION_CRASHES, ~owner_has_job), ~owner_has_probation_job)
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
    """Return a query for the id of the next job of these tenants.

    The query selects no job while a claimable job of another tenant has a higher priority.
    """
    candidate, any_job = aliased(Job), aliased(Job)
    highest_priority = (
        select(any_job.priority).where(_claimable(any_job, max_creates)).order_by(*_claim_order(any_job)).limit(1)
    ).scalar_subquery()
    return (
        select(candidate.id)
        .where(_claimable(candidate, max_creates), tenants.condition(candidate))
        .where(candidate.priority >= highest_priority)
        .order_by(*_claim_order(candidate))
        .limit(1)
        .with_for_update(skip_locked=True, of=candidate)
    )


def _claim_order(row: Any) -> tuple[Any, ...]:
    return row.priority.desc(), row.core_created_at, row.id


def _claimable(row: Any, max_creates: int | None) -> ColumnElement[bool]:
    """Return the SQL condition under which a job can be claimed; `row` is an alias of `Job`.

    The job must be pending, its backoff must be over, and no other job of its service may be processing. For a create,
    fewer than `max_creates` creates may be running.
    """
    running = aliased(Job)
    same_service = select(running.id).where(running.status == PROCESSING_LITERAL, running.service_id == row.service_id)
    backoff_is_over = or_(row.available_at.is_(None), row.available_at <= db_now())
    condition = and_(row.status == PENDING_LITERAL, backoff_is_over, ~same_service.exists())
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
