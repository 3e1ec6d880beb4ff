"""Inserts, claims and finishes jobs: steps 1, 2 and 6 of a job's processing (see ARCHITECTURE.md).

Only this module changes the status of a job that has not ended. The poller submits a job. An owner claims the job,
renews the job's lease while the job runs, and finishes the job. An owner is one agent process; its name is its
`boot_id`, a random id that each process chooses at its start. `reap` takes jobs from owners whose lease expired.

Every write after a claim requires the owner and the epoch of this claim. A write is refused because the epoch has
changed, never because time has passed: an owner may renew an expired lease until the job is reaped.

`job_id` is the id of the row in the table of jobs, and `fulcrum_id` is FulcrumCore's id of the job. No function
commits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Update, case, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from executor.database.claim_statement import TenantFilter, claim_statement
from executor.database.statements import insert_into, rows_changed
from executor.database.tables import ENDED_LITERALS, PENDING_LITERAL, PROCESSING_LITERAL, Job, Run, db_now, utc_now
from executor.errors import ErrorCode, StaleJob
from executor.model import MAX_CRASHES, TRANSITIONS, JobResult, JobStatus, ReportState

#: Key of the PostgreSQL advisory lock that a claim takes before it counts the running creates.
CREATE_SLOTS_LOCK = 0x534D4954
#: How many jobs one call of `claim` tries to claim before it returns None.
MAX_CLAIM_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write one job's row. It ends when the job's epoch is raised, for example by a later claim."""

    job_id: int
    owner: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job as FulcrumCore delivered it. The poller has limited the lengths of its texts."""

    fulcrum_id: str
    service_id: str | None
    group_id: str | None
    action: str
    params: dict[str, Any] | None
    service: dict[str, Any] | None
    defect: str | None  #: why the job cannot run, None if it can; the worker claims and then fails a job with a defect
    priority: int
    core_created_at: datetime
    deadline_at: datetime
    tenant_id: str | None = None
    already_claimed: bool = False  #: FulcrumCore has the status Processing for the job, but our database was lost
    is_local: bool = False  #: the agent itself created the job: FulcrumCore does not know it, so no report is sent


def lease_of(job: Job) -> Lease:
    """Return the lease of a claimed job. Raises ValueError for a job without an owner."""
    if job.owner is None:
        raise ValueError(f"job {job.id} is not claimed")
    return Lease(job_id=job.id, owner=job.owner, epoch=job.epoch)


def submit(session: Session, new: NewJob) -> int | None:
    """Insert a job and return the id of its row; return None when a row with this `fulcrum_id` exists already."""
    now = utc_now()
    values = {
        "fulcrum_id": new.fulcrum_id,
        "service_id": new.service_id,
        "group_id": new.group_id,
        "tenant_id": new.tenant_id,
        "action": new.action,
        "params": new.params,
        "service": new.service,
        "defect": new.defect,
        "priority": new.priority,
        "core_created_at": new.core_created_at,
        "deadline_at": new.deadline_at,
        "received_at": now,
        "status": JobStatus.PENDING,
        "claim_sent_at": now if new.already_claimed else None,
        "claimed_at": now if new.already_claimed else None,
        "report_state": ReportState.LOCAL if new.is_local else ReportState.NONE,
    }
    stmt = insert_into(session, Job).values(values).on_conflict_do_nothing(index_elements=["fulcrum_id"])
    return session.scalar(stmt.returning(Job.id))


def claim(session: Session, owner: str, *, lease_s: float, max_creates: int | None = None) -> Job | None:
    """Claim the next job, or return None when no job can be claimed.

    The next job is the one with the highest priority; among these, a job of the tenant with the fewest running jobs;
    among these, the oldest. At most one job of a service runs at a time. `max_creates` limits how many creates all
    agents together run at the same time, because parallel clones compete for the storage's lock.
    """
    if max_creates is not None and session.get_bind().dialect.name == "postgresql":
        # Without this lock, two simultaneous claims could together exceed the limit. SQLite needs no such lock, because
        # it allows only one writer at a time.
        session.execute(select(func.pg_advisory_xact_lock(CREATE_SLOTS_LOCK)))
    if session.scalar(_ANY_PENDING) is None:  # an idle agent claims often, so this cheap query runs first
        return None
    # On PostgreSQL, two agents may claim two jobs of one service at the same time. One of the two claims then raises a
    # unique violation (IntegrityError), and its next attempt selects another job.
    for _ in range(MAX_CLAIM_ATTEMPTS):
        try:
            with session.begin_nested():
                return _claim_fairly(session, owner, lease_s, max_creates)
        except IntegrityError:
            continue
    return None


_ANY_PENDING = select(Job.id).where(Job.status == PENDING_LITERAL).limit(1)
_RUNNING_BY_TENANT = (
    select(Job.tenant_id, func.count())
    .where(Job.status == PROCESSING_LITERAL, Job.tenant_id.is_not(None))
    .group_by(Job.tenant_id)
)


def _claim_fairly(session: Session, owner: str, lease_s: float, max_creates: int | None) -> Job | None:
    """Claim a job of a tenant with as few running jobs as possible, so that one tenant's burst does not delay others.

    The first filter matches the tenants without a running job, and each further filter the tenants with the next higher
    number of running jobs.
    """
    running = {str(tenant): count for tenant, count in session.execute(_RUNNING_BY_TENANT)}
    filters = [TenantFilter()]
    if running:
        filters = [TenantFilter(tuple(sorted(running)), is_exclusion=True)]
        filters += [
            TenantFilter(tuple(sorted(tenant for tenant in running if running[tenant] == count)))
            for count in sorted({*running.values()})
        ]
    for tenants in filters:
        claimed: Job | None = session.scalars(claim_statement(owner, lease_s, max_creates, tenants)).one_or_none()
        if claimed is not None:
            return claimed
    return None


def _owned_by(lease: Lease) -> ColumnElement[bool]:
    """Return the SQL condition that the owner of this lease still owns the job, at the same epoch."""
    return (
        (Job.id == lease.job_id)
        & (Job.owner == lease.owner)
        & (Job.epoch == lease.epoch)
        & (Job.status == JobStatus.PROCESSING)
    )


def _write(session: Session, lease: Lease, **columns: Any) -> None:
    """Update columns of the job's row. Raises StaleJob when the lease is no longer valid."""
    if session.scalar(update(Job).where(_owned_by(lease)).values(**columns).returning(Job.id)) is None:
        raise StaleJob(f"job {lease.job_id} is no longer ours at epoch {lease.epoch}")


def note_claim_sent(session: Session, lease: Lease) -> None:
    """Store that the worker is about to claim the job at FulcrumCore.

    If FulcrumCore's answer is lost, a later attempt of the job still knows that this agent may have claimed the job.
    """
    _write(session, lease, claim_sent_at=utc_now())


def note_claimed(session: Session, lease: Lease) -> None:
    """Store that FulcrumCore accepted the agent's claim of the job."""
    _write(session, lease, claimed_at=utc_now())


def note_started(session: Session, lease: Lease, *, run_ident: str, playbook: str) -> None:
    """Store a run before it starts, so that the agent finds the run's processes and artifacts after a restart."""
    now = utc_now()
    _write(session, lease, started_at=now, run_ident=run_ident)
    attempt = session.scalar(select(Job.attempt).where(Job.id == lease.job_id)) or 0
    session.add(Run(job_id=lease.job_id, ident=run_ident, attempt=attempt, playbook=playbook, started_at=now))


def note_run_ended(  # noqa: PLR0913 (one column each)
    session: Session, run_ident: str, *, status: str, rc: int | None, reason: str, folder: str, upids: list[str]
) -> None:
    """Store how a run ended: return code, reason, artifacts folder, and the UPIDs (ids) of its Proxmox tasks.

    No lease is needed, because no decision depends on the row of a run.
    """
    columns = {"ended_at": utc_now(), "status": status, "rc": rc, "reason": reason, "folder": folder, "upids": upids}
    session.execute(update(Run).where(Run.ident == run_ident).values(**columns))


def finish(session: Session, lease: Lease, result: JobResult, report: ReportState = ReportState.DUE) -> None:
    """Store the job's result, and `report` as the state of its report.

    Raises StaleJob when the lease is no longer valid. The caller then discards the result.
    """
    status = JobStatus.COMPLETED if result.succeeded else JobStatus.FAILED
    _require_transition(JobStatus.PROCESSING, status)
    _write(
        session,
        lease,
        status=status,
        result=result.vm or None,
        error_code=result.code,
        error_message=result.message or None,
        finished_at=utc_now(),
        lease_until=None,
        report_state=_report_state(report),
        report_after=None,
    )


def _report_state(report: ReportState) -> ColumnElement[str]:
    """Return the new report state as SQL: LOCAL for a job that the agent itself created, else `report`."""
    return case((Job.report_state == ReportState.LOCAL, ReportState.LOCAL), else_=report)


def requeue(session: Session, lease: Lease, *, backoff_s: float, reason: str | None = None) -> None:
    """Set the job's status back to pending. The job can be claimed again after `backoff_s`."""
    _require_transition(JobStatus.PROCESSING, JobStatus.PENDING)
    _write(
        session,
        lease,
        status=JobStatus.PENDING,
        owner=None,
        lease_until=None,
        available_at=db_now(backoff_s) if backoff_s > 0 else None,
        error_message=reason,
    )


def renew(session: Session, owner: str, *, lease_s: float) -> dict[int, bool]:
    """Extend every lease of this owner.

    Returns the ids of the owner's jobs; the value of each is True if an operator requested the job's cancellation.
    """
    stmt = (
        update(Job)
        .where(Job.owner == owner, Job.status == PROCESSING_LITERAL)
        .values(lease_until=db_now(lease_s))
        .returning(Job.id, Job.cancel_requested)
    )
    return {job_id: cancelled for job_id, cancelled in session.execute(stmt)}


def reap(session: Session, *, sole_owner: str | None = None) -> list[tuple[int, JobStatus]]:
    """Take jobs from owners whose lease expired; return the jobs' ids and new statuses.

    With `sole_owner`, take the jobs of all other owners, even if their leases have not expired. An agent on SQLite uses
    it at its start: it holds the lock of the SQLite file, so no other agent is running. A job that is reaped
    MAX_CRASHES times fails as QUARANTINED, because the job probably crashes the agent.
    """
    has_lost_owner = Job.owner != sole_owner if sole_owner is not None else Job.lease_until < db_now()
    stmt = select(Job.id, Job.crashes, Job.epoch).where(Job.status == PROCESSING_LITERAL, has_lost_owner)
    reaped = []
    for job_id, crashes, epoch in session.execute(stmt.with_for_update(skip_locked=True)):
        status = JobStatus.FAILED if crashes + 1 >= MAX_CRASHES else JobStatus.PENDING
        _require_transition(JobStatus.PROCESSING, status)
        reap_job = update(Job).where(Job.id == job_id, Job.epoch == epoch, Job.status == JobStatus.PROCESSING)
        session.execute(reap_job.values(**_reaped_columns(status, crashes + 1)))
        reaped.append((job_id, status))
    return reaped


def _reaped_columns(status: JobStatus, crashes: int) -> dict[str, Any]:
    """Return the new column values of a job that is reaped and gets this status."""
    columns: dict[str, Any] = {"status": status, "owner": None, "lease_until": None, "crashes": crashes}
    # The earlier owner may only be suspended. Because of the new epoch, its writes fail when it continues.
    columns["epoch"] = Job.epoch + 1
    if status is JobStatus.FAILED:
        text = f"the agent stopped {crashes} times while it worked on this job"
        quarantined = JobResult(succeeded=False, code=ErrorCode.QUARANTINED, detail=text)
        columns |= {
            "error_code": quarantined.code,
            "error_message": quarantined.message,
            "finished_at": utc_now(),
            "report_state": _report_state(ReportState.DUE),
        }
    return columns


def release_all(session: Session, owner: str) -> int:
    """Set every job that a stopping agent still owns back to pending, without counting a crash.

    Returns the number of these jobs.
    """
    return rows_changed(session, _release_statement(owner))


def release(session: Session, job_id: int, owner: str) -> bool:
    """Set one job back to pending, because its owner owns the job but no thread of the owner processes it.

    Returns False when the owner no longer owns the job.
    """
    return rows_changed(session, _release_statement(owner).where(Job.id == job_id)) == 1


def _release_statement(owner: str) -> Update:
    owned = update(Job).where(Job.owner == owner, Job.status == PROCESSING_LITERAL)
    return owned.values(status=JobStatus.PENDING, owner=None, lease_until=None, available_at=None, epoch=Job.epoch + 1)


def _require_transition(before: JobStatus, after: JobStatus) -> None:
    """Raise ValueError if a job may not change from the status `before` to `after`."""
    if after not in TRANSITIONS[before]:
        raise ValueError(f"{before} -> {after} is not a transition")


def request_cancel(session: Session, job_id: int) -> JobStatus | None:
    """Cancel a pending job at once; for a processing job, store that an operator requested the cancellation.

    Returns the job's new status, None if the job had ended already.
    """
    cancelled = JobResult(succeeded=False, code=ErrorCode.CANCELLED, detail="cancelled by the operator")
    pending = (
        update(Job)
        .where(Job.id == job_id, Job.status == JobStatus.PENDING)
        .values(
            status=JobStatus.FAILED,
            error_code=cancelled.code,
            error_message=cancelled.message,
            finished_at=utc_now(),
            report_state=_report_state(ReportState.DUE),
            epoch=Job.epoch + 1,
        )
    )
    if rows_changed(session, pending):
        return JobStatus.FAILED
    running = update(Job).where(Job.id == job_id, Job.status == JobStatus.PROCESSING).values(cancel_requested=True)
    return JobStatus.PROCESSING if rows_changed(session, running) else None


def retry_now(session: Session, job_id: int) -> str:
    """End the backoff of a pending job, or of a job's due report.

    Returns "attempt" for a pending job, "report" for a due report, and "" for a job with neither.
    """
    attempt = update(Job).where(Job.id == job_id, Job.status == JobStatus.PENDING).values(available_at=None)
    if rows_changed(session, attempt):
        return "attempt"
    report = update(Job).where(Job.id == job_id, Job.report_state == ReportState.DUE).values(report_after=None)
    return "report" if rows_changed(session, report) else ""


def prune(session: Session, *, ended_before: datetime, limit: int) -> tuple[int, list[str]]:
    """Delete at most `limit` jobs that ended before `ended_before` and whose report is not due.

    Returns the number of deleted jobs, and the idents of their runs, which are the names of artifacts folders.
    """
    old = (
        select(Job.id)
        .where(Job.status.in_(ENDED_LITERALS), Job.finished_at < ended_before, Job.report_state != ReportState.DUE)
        .order_by(Job.finished_at)
        .limit(limit)
    )
    job_ids = session.scalars(old).all()
    idents = list(session.scalars(select(Run.ident).where(Run.job_id.in_(job_ids))))
    session.execute(delete(Run).where(Run.job_id.in_(job_ids)))
    session.execute(delete(Job).where(Job.id.in_(job_ids)))
    return len(job_ids), idents
