"""Builds the SQL statement of `job_queue.claim`: one UPDATE that selects a pending job and claims it for an owner.

The owner of a job is the agent process that has claimed it. A tenant is the customer in FulcrumCore that uses a job's
service. A tenant key is a tenant id, or '' for jobs without a tenant. The column `core_created_at` contains the time at
which FulcrumCore created the job.

The conditions compare with SQL literals such as PENDING_LITERAL, because SQLite uses a partial index only if the text
of the statement contains the value.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import CTE, ColumnElement, ScalarSelect, Select, and_, func, literal_column, or_, select, update
from sqlalchemy.orm import aliased

from executor.database import manual_runs
from executor.database.literals import PENDING_LITERAL, PROCESSING_LITERAL
from executor.database.statements import MAX_BACKOFF_S, is_wait_over
from executor.database.tables.jobs import Job, ManualRun
from executor.database.times import db_now
from executor.model import MIN_CRASHES_FOR_PROBATION, JobStatus

#: The maximum number of create jobs that run at the same time: a number, or an SQL expression for the number. The
#: caller passes the same expression object with each claim, because the cache of `claim_statement` uses the object as a
#: key.
MaxCreates = int | ScalarSelect[int]


@lru_cache(maxsize=512)  # building the statement takes ten times as long as running it
def claim_statement(owner: str, lease_s: float, max_creates: MaxCreates | None) -> Any:
    """Return the UPDATE that claims the next job for the owner and returns the job's row.

    `max_creates` limits how many create jobs run at the same time; None means no limit.

    If at least MIN_CRASHES_FOR_PROBATION crashes of the agent were counted for a job, the job is on probation, which
    means that it runs alone. If the next job is on probation and the owner has another job, the UPDATE claims nothing.
    An owner that has a job on probation claims no other job.
    """
    owned_job = aliased(Job)
    owned_job_ids = select(owned_job.id).where(owned_job.status == PROCESSING_LITERAL, owned_job.owner == owner)
    owner_has_job = owned_job_ids.exists()
    owner_has_probation_job = owned_job_ids.where(owned_job.crashes >= MIN_CRASHES_FOR_PROBATION).exists()
    return (
        update(Job)
        .where(Job.id == _next_job_id(max_creates).scalar_subquery(), Job.status == JobStatus.PENDING)
        .where(or_(Job.crashes < MIN_CRASHES_FOR_PROBATION, ~owner_has_job), ~owner_has_probation_job)
        .values(
            status=JobStatus.PROCESSING,
            owner=owner,
            epoch=Job.epoch + 1,
            attempt=Job.attempt + 1,
            lease_until=db_now(lease_s),
            available_at=None,
            # The column is True while the attempt waits for an answer of Proxmox, or for the end of other clones.
            is_waiting=False,
        )
        .returning(Job)
        .execution_options(populate_existing=True)
    )


def _next_job_id(max_creates: MaxCreates | None) -> Select[int]:
    """Return a query for the id of the next job, by the three rules of `job_queue.claim`.

    The rules are: the highest priority, the tenant with the fewest processing jobs, and the oldest job. First the query
    selects the tenant, and then its oldest job. Each step reads only a few entries of an index, so a claim takes
    as long with many pending jobs as with few.
    """
    tenant = _next_tenant(max_creates).subquery("next_tenant")
    # `_next_tenant` has found the tenant's oldest job already. This query selects the job again to lock the job: if
    # another transaction on PostgreSQL has locked it, SKIP LOCKED selects the tenant's next job instead.
    oldest_job_id = _oldest_job_id(tenant.c.priority, tenant.c.tenant_key, max_creates)
    return select(oldest_job_id.with_for_update(skip_locked=True).scalar_subquery()).select_from(tenant)


def _next_tenant(max_creates: MaxCreates | None) -> Select[int, str]:
    """Return a query for two values: the highest priority of a claimable job, and the tenant whose job comes next."""
    tenants = _tenants_with_pending_jobs(max_creates)
    oldest_job_id = _oldest_job_id(tenants.c.priority, tenants.c.tenant_key, max_creates).scalar_subquery()
    oldest_jobs = select(tenants.c.priority, tenants.c.tenant_key, oldest_job_id.label("job_id")).subquery("oldest")
    job = aliased(Job)
    created_at = select(job.core_created_at).where(job.id == oldest_jobs.c.job_id).scalar_subquery()
    processing_job = aliased(Job)
    processing_counts = (
        select(processing_job.tenant_id, func.count().label("processing_count"))
        .where(processing_job.status == PROCESSING_LITERAL, processing_job.tenant_id.is_not(None))
        .group_by(processing_job.tenant_id)
        .subquery("counts")
    )
    # A tenant without a processing job, and a job without a tenant, have no row in `processing_counts`.
    processing_count_of_tenant = func.coalesce(processing_counts.c.processing_count, 0)
    return (
        select(oldest_jobs.c.priority, oldest_jobs.c.tenant_key)
        .outerjoin(processing_counts, processing_counts.c.tenant_id == oldest_jobs.c.tenant_key)
        .where(oldest_jobs.c.job_id.is_not(None))
        .order_by(processing_count_of_tenant, created_at, oldest_jobs.c.job_id)
        .limit(1)
    )


def _oldest_job_id(
    priority: ColumnElement[int], tenant_key: ColumnElement[str], max_creates: MaxCreates | None
) -> Select[int]:
    """Return a query for the id of the oldest claimable job with this priority and this tenant."""
    job = aliased(Job)
    return (
        select(job.id)
        .where(job.priority == priority, _tenant_key(job) == tenant_key, _is_claimable(job, max_creates))
        .order_by(job.core_created_at, job.id)
        .limit(1)
    )


def _tenants_with_pending_jobs(max_creates: MaxCreates | None) -> CTE:
    """Return a query for the tenants that have a pending job with the highest priority.

    The highest priority is the highest among the claimable jobs. A row contains this priority and the key of one
    tenant. It is possible that no job of the tenant is claimable.

    The recursion reads one entry of the index `ix_jobs_to_claim_of_tenant` for each tenant, and not one for each job.
    It ends with a row that has NULL instead of a tenant.
    """
    claimable_job = aliased(Job)
    highest_priority = (
        select(claimable_job.priority)
        .where(_is_claimable(claimable_job, max_creates))
        .order_by(claimable_job.priority.desc(), claimable_job.core_created_at, claimable_job.id)
        .limit(1)
    ).subquery("highest_priority")
    first_tenant = select(
        highest_priority.c.priority, _first_tenant_key(highest_priority.c.priority).label("tenant_key")
    )
    tenants = first_tenant.cte("tenants", recursive=True)
    following_tenant_key = _first_tenant_key(tenants.c.priority, after=tenants.c.tenant_key)
    return tenants.union_all(select(tenants.c.priority, following_tenant_key).where(tenants.c.tenant_key.is_not(None)))


def _first_tenant_key(priority: ColumnElement[int], after: ColumnElement[str] | None = None) -> ScalarSelect[str]:
    """Return the lowest tenant key of the pending jobs with this priority. With `after`, only higher keys count."""
    job = aliased(Job)
    query = select(_tenant_key(job)).where(job.status == PENDING_LITERAL, job.priority == priority)
    if after is not None:
        query = query.where(_tenant_key(job) > after)
    return query.order_by(_tenant_key(job)).limit(1).scalar_subquery()


def _tenant_key(job_alias: Any) -> ColumnElement[str]:
    """Return the SQL expression for the tenant of a job: its tenant id, or '' for a job without a tenant.

    The database uses the index `ix_jobs_to_claim_of_tenant` only if a statement contains exactly this expression.
    """
    return func.coalesce(job_alias.tenant_id, literal_column("''"))


def _is_claimable(job_alias: Any, max_creates: MaxCreates | None) -> ColumnElement[bool]:
    """Return the SQL condition that a job can be claimed. `job_alias` is an alias of the table of jobs.

    The job must be pending, its backoff must be over, and its service must have no processing job and no run in
    progress that an operator started. A create job can be claimed only while fewer than `max_creates` create jobs
    are processing.
    """
    processing_job = aliased(Job)
    processing_job_of_service = select(processing_job.id).where(
        processing_job.status == PROCESSING_LITERAL, processing_job.service_id == job_alias.service_id
    )
    manual_run = aliased(ManualRun)
    manual_run_of_service = select(manual_run.id).where(
        manual_runs.is_in_progress(manual_run), manual_run.service_id == job_alias.service_id
    )
    # No backoff is longer than MAX_BACKOFF_S. If the remaining backoff is longer, the database's clock was set back.
    # Then the backoff counts as over.
    is_backoff_over = is_wait_over(job_alias.available_at, MAX_BACKOFF_S)
    is_service_free = ~processing_job_of_service.exists() & ~manual_run_of_service.exists()
    condition = and_(job_alias.status == PENDING_LITERAL, is_backoff_over, is_service_free)
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
