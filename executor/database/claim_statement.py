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
    """A condition on the tenant of the job that an UPDATE claims.

    A tenant is a participant in FulcrumCore that consumes services. Without `is_exclusion`, the filter selects the jobs
    of `tenants`. With `is_exclusion`, it selects all other jobs, which include the jobs without a tenant. If `tenants`
    is empty, it selects every job.
    """

    tenants: tuple[str, ...] = ()
    is_exclusion: bool = False

    def condition(self, job_alias: Any) -> ColumnElement[bool]:
        """Return the filter as an SQL condition on `job_alias`, which is an alias of the table of jobs."""
        if not self.tenants:
            return true()
        if self.is_exclusion:
            return or_(job_alias.tenant_id.is_(None), job_alias.tenant_id.not_in(self.tenants))
        is_listed: ColumnElement[bool] = job_alias.tenant_id.in_(self.tenants)
        return is_listed


@lru_cache(maxsize=512)  # building the statement takes ten times as long as running it
def claim_statement(owner: str, lease_s: float, max_creates: int | None, tenant_filter: TenantFilter) -> Any:
    """Return the UPDATE that claims the next job for the owner and returns the job's row.

    `max_creates` limits how many creates run at the same time. A job that was reaped at least PROBATION_CRASHES times
    is on probation, which means that it runs alone. If the next job is on probation and the owner has another job, the
    UPDATE claims nothing. An owner that has a job on probation claims no other job.
    """
    owned_job = aliased(Job)
    owned_job_ids = select(owned_job.id).where(owned_job.status == PROCESSING_LITERAL, owned_job.owner == owner)
    owner_has_job = owned_job_ids.exists()
    owner_has_probation_job = owned_job_ids.where(owned_job.crashes >= PROBATION_CRASHES).exists()
    return (
        update(Job)
        .where(Job.id == _next_job_id(max_creates, tenant_filter).scalar_subquery(), Job.status == JobStatus.PENDING)
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


def _next_job_id(max_creates: int | None, tenant_filter: TenantFilter) -> Select[int]:
    """Return a query for the id of the next job that the filter selects.

    The query searches only the claimable jobs with the highest priority. It finds no job if the filter selects none of
    these jobs.
    """
    candidate, claimable_job = aliased(Job), aliased(Job)
    highest_priority = (
        select(claimable_job.priority)
        .where(_is_claimable(claimable_job, max_creates))
        .order_by(*_claim_order(claimable_job))
        .limit(1)
    ).scalar_subquery()
    return (
        select(candidate.id)
        .where(_is_claimable(candidate, max_creates), tenant_filter.condition(candidate))
        .where(candidate.priority >= highest_priority)  # no claimable job has a higher one, so `>=` means `==`
        .order_by(*_claim_order(candidate))
        .limit(1)
        .with_for_update(skip_locked=True, of=candidate)
    )


def _claim_order(job_alias: Any) -> tuple[Any, ...]:
    """Return the SQL sort order of claims: highest priority first, then oldest first."""
    return job_alias.priority.desc(), job_alias.core_created_at, job_alias.id


def _is_claimable(job_alias: Any, max_creates: int | None) -> ColumnElement[bool]:
    """Return the SQL condition that a job can be claimed. `job_alias` is an alias of the table of jobs.

    The job must be pending, its backoff must be over, and its service must have no processing job. A create can be
    claimed only while fewer than `max_creates` creates are processing.
    """
    processing_job = aliased(Job)
    processing_job_of_service = select(processing_job.id).where(
        processing_job.status == PROCESSING_LITERAL, processing_job.service_id == job_alias.service_id
    )
    backoff_is_over = or_(job_alias.available_at.is_(None), job_alias.available_at <= db_now())
    condition = and_(job_alias.status == PENDING_LITERAL, backoff_is_over, ~processing_job_of_service.exists())
    if max_creates is None:
        return condition
    create_job = aliased(Job)
    processing_create_count = (
        select(func.count())
        .select_from(create_job)
        .where(create_job.status == PROCESSING_LITERAL, create_job.action == "create")
        .scalar_subquery()
    )
    return and_(condition, or_(job_alias.action != "create", processing_create_count < max_creates))
