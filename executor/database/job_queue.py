"""Inserts, claims, requeues, finishes, cancels and deletes jobs.

Only this module, `reaping`, `reopening` and `outbox` change the status of a job. `reopening` makes an ended job pending
again. `outbox` makes a completed job failed if FulcrumCore refuses the report of its success.

The poller submits a job. An agent process claims the job and so becomes its owner. The owner renews the job's lease
while the job runs, and finishes the job. The column `owner` contains the process's `boot_id`: a random id that each
agent process chooses at its start.
`reaping.reap` takes a job from its owner after the owner has ended, or has not renewed the job's lease for too long.

There are two claims. `claim` changes only the database. After that, the owner also claims the job at FulcrumCore, which
then gives the job its status Processing. `is_claimed_at_fulcrum`, the functions `store_fulcrum_claim_*` and the columns
`claim_sent_at` and `claimed_at` are about the claim at FulcrumCore.

A function with a parameter `lease` writes only while the job still has the owner and the epoch of this lease. After the
time `lease_until`, the owner can still write, and can renew the lease. But after `reaping.reap` has raised the job's
epoch, the writes of the earlier owner fail.

`job_id` is the id of a row in the table of jobs, and `fulcrum_id` is FulcrumCore's id of a job. No function commits:
the caller opens and commits the transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, case, delete, func, literal_column, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from executor.database import job_events, manual_runs
from executor.database.claim_statement import MaxCreates, claim_statement
from executor.database.literals import ENDED_LITERALS, PENDING_LITERAL, PROCESSING_LITERAL
from executor.database.pause_scopes import ALL_AGENTS
from executor.database.statements import MAX_BACKOFF_S, execute_and_count, insert_into
from executor.database.tables.agents import Pause
from executor.database.tables.jobs import Job, Run
from executor.database.times import db_now, utc_now
from executor.errors import StaleJob
from executor.model import (
    JOB_STATUS_TRANSITIONS,
    JobEventKind,
    JobResult,
    JobStatus,
    ReportState,
)
from executor.shared.error_codes import ErrorCode

#: The key of the PostgreSQL advisory lock that a claim takes before it counts the running create jobs. The value is
#: the ASCII text "SMIT".
CREATE_LIMIT_LOCK_KEY = 0x534D4954
#: The error message of a job that an installation with another database has claimed. FulcrumCore lists the job as
#: Processing, but no agent process of this database has claimed it.
CLAIMED_ELSEWHERE_TEXT = "another installation with this agent's token has claimed the job"
#: How many times one call of `claim` tries to claim a job before it returns None.
MAX_CLAIM_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write the row of one job. It ends when the job's epoch is raised, for example by `reaping.reap`.

    After the time in the column `lease_until`, `reaping.reap` may take the job from its owner. Each renewal of the
    lease sets a later time.
    """

    job_id: int
    owner: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job that FulcrumCore delivered or that the agent created. All texts fit into their columns."""

    fulcrum_id: str
    service_id: str | None
    group_id: str | None  #: the id of the service's group in FulcrumCore
    action: str
    params: dict[str, Any] | None
    service: dict[str, Any] | None  #: the service as FulcrumCore's API describes it
    defect: str | None  #: why the job cannot run, or None; the worker claims a job with a defect, and then fails it
    priority: int
    core_created_at: datetime  #: when FulcrumCore created the job
    deadline_at: datetime  #: by FulcrumCore's clock; FulcrumCore fails a job that has not ended at this time
    tenant_id: str | None = None  #: the participant in FulcrumCore that uses the service
    #: True if FulcrumCore lists the job as claimed by this agent. Either this agent claimed the job and then lost its
    #: database, or another installation claimed the job (`is_claimed_elsewhere`).
    is_claimed_at_fulcrum: bool = False
    #: True if another installation (see CLAIMED_ELSEWHERE_TEXT) has claimed the job. `submit` then stores it as failed.
    is_claimed_elsewhere: bool = False
    #: True if the agent created the job. FulcrumCore does not know the job, so no report is sent.
    is_local: bool = False


def lease_of(job: Job) -> Lease:
    """Return the lease of a processing job. Raises ValueError for a job without an owner."""
    if job.owner is None:
        raise ValueError(f"job {job.id} has no owner")
    return Lease(job_id=job.id, owner=job.owner, epoch=job.epoch)


def submit(session: Session, new_job: NewJob) -> int | None:
    """Insert a job and return the id of its row. Return None when a row with this `fulcrum_id` exists already."""
    now = utc_now()
    values = {
        "fulcrum_id": new_job.fulcrum_id,
        "service_id": new_job.service_id,
        "group_id": new_job.group_id,
        "tenant_id": new_job.tenant_id,
        "action": new_job.action,
        "params": new_job.params,
        "service": new_job.service,
        "defect": new_job.defect,
        "priority": new_job.priority,
        "core_created_at": new_job.core_created_at,
        "deadline_at": new_job.deadline_at,
        "received_at": now,
        "status": JobStatus.PENDING,
        "claim_sent_at": now if new_job.is_claimed_at_fulcrum else None,
        "claimed_at": now if new_job.is_claimed_at_fulcrum else None,
        "report_state": ReportState.LOCAL if new_job.is_local else ReportState.NONE,  # NONE: the job has not ended
    }
    if new_job.is_claimed_elsewhere:
        values |= _columns_of_job_claimed_elsewhere(now)
    stmt = insert_into(session, Job).values(values).on_conflict_do_nothing(index_elements=["fulcrum_id"])
    return session.scalar(stmt.returning(Job.id))


def _columns_of_job_claimed_elsewhere(now: datetime) -> dict[str, Any]:
    """Return the columns of a job that another installation with this agent's token has claimed."""
    result = JobResult(succeeded=False, code=ErrorCode.JOB_CLAIMED_ELSEWHERE, detail=CLAIMED_ELSEWHERE_TEXT)
    return {
        "status": JobStatus.FAILED,
        "error_code": result.code,
        "error_message": result.message,
        "finished_at": now,
        "report_state": ReportState.CLAIMED_ELSEWHERE,  # no report: the other installation reports the job
    }


def claim(session: Session, owner: str, *, lease_s: float, max_creates: MaxCreates | None = None) -> Job | None:
    """Claim the next job in the database and return it. Return None when no job can be claimed.

    These rules select the next job from the jobs that can be claimed. Each rule selects from the jobs that the
    previous rule selected.

    1. Select the jobs with the highest priority.
    2. Select the jobs of the tenants with the fewest processing jobs. A job without a tenant counts as the job of a
       tenant without processing jobs. So a tenant that requests many jobs at once does not delay other tenants.
    3. Select the oldest job.

    No job can be claimed while an operator has paused all agents (`executor.database.pauses`). A job cannot be claimed
    while another job of its service is processing, or while an operator runs a playbook for the service by hand.
    `max_creates` limits how many create jobs all agent processes together run at the same time, because parallel clones
    compete for the lock of the storage. None means no limit.
    """
    if session.get_bind().dialect.name == "postgresql":
        _take_claim_locks(session, is_create_limited=max_creates is not None)
    # An idle agent process calls this function often, and this query is much cheaper than a claim.
    if session.scalar(_PENDING_JOB_QUERY) is None:
        return None
    # On PostgreSQL, two agent processes may claim two jobs of one service at the same time. Then one of the two claims
    # violates a unique index and raises IntegrityError. The next attempt of this claim selects another job.
    for _ in range(MAX_CLAIM_ATTEMPTS):
        try:
            with session.begin_nested():
                job: Job | None = session.scalars(claim_statement(owner, lease_s, max_creates)).one_or_none()
                return job
        except IntegrityError:
            continue
    return None


def _take_claim_locks(session: Session, *, is_create_limited: bool) -> None:
    """Take the advisory locks of a claim on PostgreSQL. SQLite allows only one writer at a time, so it needs none."""
    # While this transaction has this lock, no operator can start a run by hand.
    locks = [func.pg_advisory_xact_lock_shared(manual_runs.MANUAL_RUN_LOCK_KEY)]
    if is_create_limited:  # otherwise, two simultaneous claims could together exceed the limit
        locks.append(func.pg_advisory_xact_lock(CREATE_LIMIT_LOCK_KEY))
    session.execute(select(*locks))


#: The SQL condition that an operator has paused all agents. The pause of a single agent process is not checked here: a
#: paused process does not call `claim`.
_ARE_ALL_AGENTS_PAUSED = select(Pause.scope).where(Pause.scope == literal_column(f"'{ALL_AGENTS}'")).exists()
_PENDING_JOB_QUERY = select(Job.id).where(Job.status == PENDING_LITERAL, ~_ARE_ALL_AGENTS_PAUSED).limit(1)


def _still_has_lease(lease: Lease) -> ColumnElement[bool]:
    """Return the SQL condition that the job is processing, and still has the owner and the epoch of this lease.

    The condition does not depend on the time `lease_until`, because the owner may also write after this time.
    """
    return (
        (Job.id == lease.job_id)
        & (Job.owner == lease.owner)
        & (Job.epoch == lease.epoch)
        & (Job.status == JobStatus.PROCESSING)
    )


def write_with_lease(session: Session, lease: Lease, **columns: Any) -> None:
    """Update columns of the job's row. Raises StaleJob when the lease is no longer valid."""
    stmt = update(Job).where(_still_has_lease(lease)).values(**columns).returning(Job.id)
    if session.scalar(stmt) is None:
        raise StaleJob(f"this agent process no longer has the lease of job {lease.job_id} (epoch {lease.epoch})")


def store_fulcrum_claim_sent(session: Session, lease: Lease) -> None:
    """Store that the worker is about to send the claim of the job to FulcrumCore.

    If FulcrumCore's answer is lost, the stored time tells the next attempt that FulcrumCore may have accepted the
    claim.
    """
    write_with_lease(session, lease, claim_sent_at=utc_now())


def store_fulcrum_claim_accepted(session: Session, lease: Lease) -> None:
    """Store that FulcrumCore accepted the agent's claim of the job."""
    write_with_lease(session, lease, claimed_at=utc_now())


def store_reserved_amounts(session: Session, lease: Lease, amounts: Mapping[str, int]) -> None:
    """Store by how much the job will raise its tenant's usage.

    While the job is pending or processing, the amounts count against the tenant's limits. The keys of `amounts` are
    vms, cores, memory_mib, disk_gib, snapshots and backups.
    """
    write_with_lease(session, lease, **{f"reserved_{name}": amount for name, amount in amounts.items()})


def store_wait_before_run(session: Session, lease: Lease) -> None:
    """Store that the job waits before its run starts.

    The job waits until the agent has read the state of the Proxmox cluster, to choose or check the VM's node, or until
    a clone slot (the permission to run one clone) is free. A crash of the agent process during the wait is not counted
    in the column `crashes`.
    """
    write_with_lease(session, lease, is_waiting=True)


def finish(session: Session, lease: Lease, result: JobResult, report_state: ReportState = ReportState.DUE) -> None:
    """End the job: store its result and the state of its report.

    The report state DUE means that FulcrumCore has not acknowledged the result yet.

    The column `result` contains the facts about the VM that the playbook returned. Tenants may read `error_message`;
    `operator_detail` is the error message for operators.

    Raises StaleJob when the lease is no longer valid. The caller must then discard the result.
    """
    status = JobStatus.COMPLETED if result.succeeded else JobStatus.FAILED
    require_transition(JobStatus.PROCESSING, status)
    write_with_lease(
        session,
        lease,
        status=status,
        result=result.vm or None,
        error_code=result.code,
        error_message=result.message or None,
        operator_detail=result.operator_message or None,
        finished_at=utc_now(),
        lease_until=None,
        report_state=report_state_unless_local(report_state),
        report_after=None,  # the report has no backoff
    )


def report_state_unless_local(report_state: ReportState) -> ColumnElement[str]:
    """Return the SQL expression for a job's new report state: a LOCAL job stays LOCAL, others get `report_state`."""
    return case((Job.report_state == ReportState.LOCAL, ReportState.LOCAL), else_=report_state)


def requeue(  # noqa: PLR0913 (one parameter for each column)
    session: Session,
    lease: Lease,
    *,
    backoff_s: float,
    reason: str | None = None,
    operator_reason: str | None = None,
    counts_as_attempt: bool = True,
) -> None:
    """Set the job's status back to pending. The job can be claimed again after `backoff_s`.

    Tenants may read `reason`. `operator_reason` contains more details, for operators only. If it is None, operators
    get `reason`.

    If `counts_as_attempt` is False, the next attempt gets the same number as this attempt.
    """
    require_transition(JobStatus.PROCESSING, JobStatus.PENDING)
    write_with_lease(
        session,
        lease,
        status=JobStatus.PENDING,
        owner=None,
        lease_until=None,
        available_at=db_now(min(backoff_s, MAX_BACKOFF_S)) if backoff_s > 0 else None,
        error_message=reason,
        operator_detail=operator_reason or reason,
        attempt=Job.attempt if counts_as_attempt else Job.attempt - 1,
    )
    job_events.add_event(session, lease.job_id, JobEventKind.REQUEUED, operator_reason or reason or "")


def renew_leases(session: Session, owner: str, *, lease_s: float) -> dict[int, bool]:
    """Extend every lease of this owner.

    Returns, for the id of each of the owner's jobs, whether an operator requested to cancel the job.
    """
    stmt = (
        update(Job)
        .where(Job.owner == owner, Job.status == PROCESSING_LITERAL)
        .values(lease_until=db_now(lease_s))
        .returning(Job.id, Job.cancel_requested)
    )
    return {job_id: is_cancel_requested for job_id, is_cancel_requested in session.execute(stmt)}


def require_transition(old_status: JobStatus, new_status: JobStatus) -> None:
    """Raise ValueError if a job may not change from the status `old_status` to `new_status`."""
    if new_status not in JOB_STATUS_TRANSITIONS[old_status]:
        raise ValueError(f"a job may not change from {old_status} to {new_status}")


def cancel_or_request_cancel(session: Session, job_id: int) -> JobStatus | None:
    """Cancel a pending job at once. For a processing job, store that an operator requested to cancel it.

    Returns the status of the job after this call, or None if the job had ended already.
    """
    result = JobResult(succeeded=False, code=ErrorCode.CANCELLED, detail="cancelled by the operator")
    cancel_pending_job = (
        update(Job)
        .where(Job.id == job_id, Job.status == JobStatus.PENDING)
        .values(
            status=JobStatus.FAILED,
            error_code=result.code,
            error_message=result.message,
            finished_at=utc_now(),
            report_state=report_state_unless_local(ReportState.DUE),
            epoch=Job.epoch + 1,
        )
    )
    if execute_and_count(session, cancel_pending_job):
        return JobStatus.FAILED
    is_processing = (Job.id == job_id) & (Job.status == JobStatus.PROCESSING)
    request_cancellation = update(Job).where(is_processing).values(cancel_requested=True)
    return JobStatus.PROCESSING if execute_and_count(session, request_cancellation) else None


def prune(session: Session, *, ended_before: datetime, limit: int) -> tuple[int, list[str]]:
    """Delete at most `limit` jobs that ended before `ended_before`.

    Jobs with the report state DUE or CLAIMED_ELSEWHERE are kept. FulcrumCore may still list them as Pending or
    Processing. If they were deleted, the poller would insert them again.

    Returns the number of deleted jobs, and the idents of their runs. A run's ident is the name of its artifacts folder.
    """
    old_jobs = (
        select(Job.id)
        .where(Job.status.in_(ENDED_LITERALS), Job.finished_at < ended_before)
        .where(Job.report_state.not_in((ReportState.DUE, ReportState.CLAIMED_ELSEWHERE)))
        .order_by(Job.finished_at)
        .limit(limit)
    )
    job_ids = session.scalars(old_jobs).all()
    run_idents = list(session.scalars(select(Run.ident).where(Run.job_id.in_(job_ids))))
    session.execute(delete(Run).where(Run.job_id.in_(job_ids)))
    job_events.delete_events_of_jobs(session, job_ids)
    session.execute(delete(Job).where(Job.id.in_(job_ids)))
    return len(job_ids), run_idents
