"""Steps 1, 2 and 6 of 7: the job rows, and the only writer of their status.

Five verbs: `submit`, `claim`, `renew`, `finish`, `reap`; the rest are notes between them. Every
write after the claim counts only for the same owner and epoch. The epoch is the fence, never the clock: a lease that
ran out but was not reaped may still be renewed. Nothing here commits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Update, case, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from executor.database.claim_statement import Turn, claim_statement
from executor.database.statements import insert_into, rows_changed
from executor.database.tables import ENDED_LITERALS, PENDING_LITERAL, PROCESSING_LITERAL, Job, Run, db_now, utc_now
from executor.errors import ErrorCode, StaleJob
from executor.model import MAX_CRASHES, TRANSITIONS, JobResult, JobStatus, ReportState

#: PostgreSQL's advisory lock under which free places for creates are counted and taken.
CREATE_SLOTS_LOCK = 0x534D4954


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write one job: holds until somebody else's claim raises the epoch."""

    job_id: int
    owner: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job as FulcrumCore delivered it, bounded and cleaned by the poller."""

    fulcrum_id: str
    service_id: str | None
    group_id: str | None
    action: str
    params: dict[str, Any] | None
    service: dict[str, Any] | None
    defect: str | None  #: set when it can only be claimed and failed
    priority: int
    core_created_at: datetime
    deadline_at: datetime
    tenant_id: str | None = None
    already_claimed: bool = False  #: FulcrumCore has it Processing for us: a lost database, taken in at start
    is_local: bool = False  #: our own: FulcrumCore has never seen it, and is told nothing


def lease_of(job: Job) -> Lease:
    """Return the right that a freshly claimed row gives."""
    if job.owner is None:
        raise ValueError(f"job {job.id} is not claimed")
    return Lease(job_id=job.id, owner=job.owner, epoch=job.epoch)


def submit(session: Session, new: NewJob) -> int | None:
    """Write a row unless FulcrumCore's id is known; return our id, None when it was known."""
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
    """Take the next job: highest priority, then the tenant with the fewest under way, then oldest; one a service.

    `max_creates` bounds the creates under way on all nodes: parallel clones fight for the storage's lock.
    None when there is nothing to take.
    """
    if max_creates is not None and session.get_bind().dialect.name == "postgresql":
        # Two claims at the same moment would both count before the other's create shows. SQLite has one writer anyway.
        session.execute(select(func.pg_advisory_xact_lock(CREATE_SLOTS_LOCK)))
    if session.scalar(_ANY_PENDING) is None:  # asked every second of an idle agent's life
        return None
    # A lost race for a service shows as a unique violation on PostgreSQL; the next candidate is another row.
    for _ in range(5):
        try:
            with session.begin_nested():
                return _claim_fairly(session, owner, lease_s, max_creates)
        except IntegrityError:
            continue
    return None


_ANY_PENDING = select(Job.id).where(Job.status == PENDING_LITERAL).limit(1)
_UNDER_WAY = (
    select(Job.tenant_id, func.count())
    .where(Job.status == PROCESSING_LITERAL, Job.tenant_id.is_not(None))
    .group_by(Job.tenant_id)
)


def _claim_fairly(session: Session, owner: str, lease_s: float, max_creates: int | None) -> Job | None:
    """Let the tenants with the fewest jobs under way come first: a burst of one must not hold up the others."""
    counts = {str(tenant): count for tenant, count in session.execute(_UNDER_WAY)}
    turns = [Turn()]
    if counts:
        turns = [Turn(tuple(sorted(counts)), others=True)]
        turns += [Turn(tuple(sorted(t for t in counts if counts[t] == n))) for n in sorted({*counts.values()})]
    for turn in turns:
        claimed: Job | None = session.scalars(claim_statement(owner, lease_s, max_creates, turn)).one_or_none()
        if claimed is not None:
            return claimed
    return None


def _held(lease: Lease) -> ColumnElement[bool]:
    return (
        (Job.id == lease.job_id)
        & (Job.owner == lease.owner)
        & (Job.epoch == lease.epoch)
        & (Job.status == JobStatus.PROCESSING)
    )


def _write(session: Session, lease: Lease, **columns: Any) -> None:
    if session.scalar(update(Job).where(_held(lease)).values(**columns).returning(Job.id)) is None:
        raise StaleJob(f"job {lease.job_id} is no longer ours at epoch {lease.epoch}")


def note_claim_sent(session: Session, lease: Lease) -> None:
    """Write down that the claim is about to be sent: an answer that gets lost is then still ours."""
    _write(session, lease, claim_sent_at=utc_now())


def note_claimed(session: Session, lease: Lease) -> None:
    """Write down that FulcrumCore has the job as Processing, by us."""
    _write(session, lease, claimed_at=utc_now())


def note_started(session: Session, lease: Lease, *, run_ident: str, playbook: str) -> None:
    """Write down a run before it starts, so that a restart knows what to look for."""
    now = utc_now()
    _write(session, lease, started_at=now, run_ident=run_ident)
    attempt = session.scalar(select(Job.attempt).where(Job.id == lease.job_id)) or 0
    session.add(Run(job_id=lease.job_id, ident=run_ident, attempt=attempt, playbook=playbook, started_at=now))


def note_run_ended(  # noqa: PLR0913 (one column each)
    session: Session, run_ident: str, *, status: str, rc: int | None, reason: str, folder: str, upids: list[str]
) -> None:
    """Close a run's row; counts for any owner, because it tells history and decides nothing."""
    columns = {"ended_at": utc_now(), "status": status, "rc": rc, "reason": reason, "folder": folder, "upids": upids}
    session.execute(update(Run).where(Run.ident == run_ident).values(**columns))


def finish(session: Session, lease: Lease, result: JobResult, report: ReportState = ReportState.DUE) -> None:
    """End the job. Raises StaleJob when another owner has it: the result must then not be reported."""
    status = JobStatus.COMPLETED if result.succeeded else JobStatus.FAILED
    _check(JobStatus.PROCESSING, status)
    _write(
        session,
        lease,
        status=status,
        result=result.vm or None,
        error_code=result.code,
        error_message=result.message or None,
        finished_at=utc_now(),
        lease_until=None,
        report_state=_unless_local(report),
        report_after=None,
    )


def _unless_local(report: ReportState) -> ColumnElement[str]:
    """What FulcrumCore is to hear of an end; of a job that it has never seen, nothing."""
    return case((Job.report_state == ReportState.LOCAL, ReportState.LOCAL), else_=report)


def requeue(session: Session, lease: Lease, *, backoff_s: float, reason: str | None = None) -> None:
    """Return the job to the queue, to be taken up again after `backoff_s`."""
    _check(JobStatus.PROCESSING, JobStatus.PENDING)
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
    """Extend every lease of this owner; return job id to "cancel was asked for"."""
    stmt = (
        update(Job)
        .where(Job.owner == owner, Job.status == PROCESSING_LITERAL)
        .values(lease_until=db_now(lease_s))
        .returning(Job.id, Job.cancel_requested)
    )
    return {job_id: cancelled for job_id, cancelled in session.execute(stmt)}


def reap(session: Session, *, alone_as: str | None = None) -> list[tuple[int, JobStatus]]:
    """Take jobs back whose owner is gone; return their ids and new statuses.

    With `alone_as` every other owner is known to be dead (one process holds the SQLite file's lock); without it a
    lease must have run out. The third time the job is quarantined: it brings agents down.
    """
    gone = Job.owner != alone_as if alone_as is not None else Job.lease_until < db_now()
    stmt = select(Job.id, Job.crashes, Job.epoch).where(Job.status == PROCESSING_LITERAL, gone)
    taken = []
    for job_id, crashes, epoch in session.execute(stmt.with_for_update(skip_locked=True)):
        status = JobStatus.FAILED if crashes + 1 >= MAX_CRASHES else JobStatus.PENDING
        _check(JobStatus.PROCESSING, status)
        taken_here = update(Job).where(Job.id == job_id, Job.epoch == epoch, Job.status == JobStatus.PROCESSING)
        session.execute(taken_here.values(**_reaped_columns(status, crashes + 1)))
        taken.append((job_id, status))
    return taken


def _reaped_columns(status: JobStatus, crashes: int) -> dict[str, Any]:
    columns: dict[str, Any] = {"status": status, "owner": None, "lease_until": None, "crashes": crashes}
    # The epoch moves on, so that a paused owner that wakes up can write nothing any more.
    columns["epoch"] = Job.epoch + 1
    if status is JobStatus.FAILED:
        text = f"the agent stopped {crashes} times while it worked on this job"
        quarantined = JobResult(succeeded=False, code=ErrorCode.QUARANTINED, detail=text)
        columns |= {
            "error_code": quarantined.code,
            "error_message": quarantined.message,
            "finished_at": utc_now(),
            "report_state": _unless_local(ReportState.DUE),
        }
    return columns


def release_all(session: Session, owner: str) -> int:
    """Put back what a leaving agent still holds: an orderly stop counts as no crash."""
    return rows_changed(session, _release(owner))


def release(session: Session, job_id: int, owner: str) -> bool:
    """Put back one job that its owner holds and does not work on; False when it has ended meanwhile."""
    return rows_changed(session, _release(owner).where(Job.id == job_id)) == 1


def _release(owner: str) -> Update:
    held = update(Job).where(Job.owner == owner, Job.status == PROCESSING_LITERAL)
    return held.values(status=JobStatus.PENDING, owner=None, lease_until=None, available_at=None, epoch=Job.epoch + 1)


def _check(before: JobStatus, after: JobStatus) -> None:
    if after not in TRANSITIONS[before]:
        raise ValueError(f"{before} -> {after} is not a transition")


def request_cancel(session: Session, job_id: int) -> JobStatus | None:
    """Ask for a job's end; a waiting one fails at once. Returns its status now, None when it had ended before."""
    cancelled = JobResult(succeeded=False, code=ErrorCode.CANCELLED, detail="cancelled by the operator")
    ended_here = (
        update(Job)
        .where(Job.id == job_id, Job.status == JobStatus.PENDING)
        .values(
            status=JobStatus.FAILED,
            error_code=cancelled.code,
            error_message=cancelled.message,
            finished_at=utc_now(),
            report_state=_unless_local(ReportState.DUE),
            epoch=Job.epoch + 1,
        )
    )
    if rows_changed(session, ended_here):
        return JobStatus.FAILED
    asked = update(Job).where(Job.id == job_id, Job.status == JobStatus.PROCESSING).values(cancel_requested=True)
    return JobStatus.PROCESSING if rows_changed(session, asked) else None


def retry_now(session: Session, job_id: int) -> str:
    """End a job's waiting: for its next attempt, or for its next report. Returns which of them, '' for neither."""
    attempt = update(Job).where(Job.id == job_id, Job.status == JobStatus.PENDING).values(available_at=None)
    if rows_changed(session, attempt):
        return "attempt"
    report = update(Job).where(Job.id == job_id, Job.report_state == ReportState.DUE).values(report_after=None)
    return "report" if rows_changed(session, report) else ""


def prune(session: Session, *, before: datetime, limit: int) -> tuple[int, list[str]]:
    """Delete at most `limit` jobs that ended and were settled before; return how many, and their runs' idents."""
    old = (
        select(Job.id)
        .where(Job.status.in_(ENDED_LITERALS), Job.finished_at < before, Job.report_state != ReportState.DUE)
        .order_by(Job.finished_at)
        .limit(limit)
    )
    job_ids = session.scalars(old).all()
    idents = list(session.scalars(select(Run.ident).where(Run.job_id.in_(job_ids))))
    session.execute(delete(Run).where(Run.job_id.in_(job_ids)))
    session.execute(delete(Job).where(Job.id.in_(job_ids)))
    return len(job_ids), idents
