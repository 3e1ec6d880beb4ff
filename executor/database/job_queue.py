"""Steps 1, 2 and 6 of 7: the job rows, and the only writer of their status.

Six verbs: `submit`, `claim`, `renew`, `finish`, `reap`, `tick`; the rest are notes between them and questions. Every
write after the claim counts only for the same owner and epoch. The epoch is the fence, never the clock: a lease that
ran out but was not reaped may still be renewed. Nothing here commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Select,
    Update,
    and_,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from executor.database.engine import CriticalJob, Job, Node, Run, db_now, utc_now
from executor.errors import ErrorCode, StaleJob
from executor.model import TRANSITIONS, JobResult, JobStatus, ReportState

#: A job whose owner vanished this often is not tried again.
MAX_CRASHES = 3
#: A job that was under way in so many deaths of agents runs alone: the next death shows whether it is to blame, and
#: none of its neighbours is put in quarantine for it.
PROBATION_CRASHES = MAX_CRASHES - 1
#: PostgreSQL's advisory lock under which free places for creates are counted and taken.
CREATE_SLOTS_LOCK = 0x534D4954
#: Statuses from which nothing moves any more.
ENDED = (JobStatus.COMPLETED, JobStatus.FAILED)
# Written into the statement, not bound: SQLite uses a partial index only where it can read the condition itself.
_PENDING: ColumnElement[str] = literal_column(f"'{JobStatus.PENDING}'")
_PROCESSING: ColumnElement[str] = literal_column(f"'{JobStatus.PROCESSING}'")
_DUE: ColumnElement[str] = literal_column(f"'{ReportState.DUE}'")
_ENDED: list[ColumnElement[str]] = [literal_column(f"'{status}'") for status in ENDED]


@dataclass(frozen=True)
class _Turn:
    """Whose jobs may be claimed now: everybody's, or those of (or of all but) some tenants."""

    tenants: tuple[str, ...] = ()
    others: bool = False

    def holds(self, row: Any) -> ColumnElement[bool]:
        if not self.tenants:
            return true()
        if self.others:
            return or_(row.tenant_id.is_(None), row.tenant_id.not_in(self.tenants))
        condition: ColumnElement[bool] = row.tenant_id.in_(self.tenants)
        return condition


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
    stmt = _insert(session, Job).values(values).on_conflict_do_nothing(index_elements=["fulcrum_id"])
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


_ANY_PENDING = select(Job.id).where(Job.status == _PENDING).limit(1)
_UNDER_WAY = (
    select(Job.tenant_id, func.count())
    .where(Job.status == _PROCESSING, Job.tenant_id.is_not(None))
    .group_by(Job.tenant_id)
)


def _claim_fairly(session: Session, owner: str, lease_s: float, max_creates: int | None) -> Job | None:
    """Let the tenants with the fewest jobs under way come first: a burst of one must not hold up the others."""
    counts = {str(tenant): count for tenant, count in session.execute(_UNDER_WAY)}
    turns = [_Turn()]
    if counts:
        turns = [_Turn(tuple(sorted(counts)), others=True)]
        turns += [_Turn(tuple(sorted(t for t in counts if counts[t] == n))) for n in sorted({*counts.values()})]
    for turn in turns:
        claimed: Job | None = session.scalars(_claim_statement(owner, lease_s, max_creates, turn)).one_or_none()
        if claimed is not None:
            return claimed
    return None


@lru_cache(maxsize=512)  # to put it together takes ten times as long as to run it
def _claim_statement(owner: str, lease_s: float, max_creates: int | None, turn: _Turn) -> Any:
    ours, suspect = aliased(Job), aliased(Job)
    beside = select(ours.id).where(ours.status == _PROCESSING, ours.owner == owner).exists()
    suspected = select(suspect.id).where(
        suspect.status == _PROCESSING, suspect.owner == owner, suspect.crashes >= PROBATION_CRASHES
    )
    return (
        update(Job)
        .where(Job.id == _next_candidate(max_creates, turn).scalar_subquery(), Job.status == JobStatus.PENDING)
        .where(or_(Job.crashes < PROBATION_CRASHES, ~beside), ~suspected.exists())
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


def _next_candidate(max_creates: int | None, turn: _Turn) -> Select[int]:
    """Select the oldest job of those whose turn it is, unless another tenant waits with a higher priority."""
    waiting, first = aliased(Job), aliased(Job)
    highest = (
        select(first.priority).where(_may_begin(first, max_creates)).order_by(*_order_of(first)).limit(1)
    ).scalar_subquery()
    return (
        select(waiting.id)
        .where(_may_begin(waiting, max_creates), turn.holds(waiting), waiting.priority >= highest)
        .order_by(*_order_of(waiting))
        .limit(1)
        .with_for_update(skip_locked=True, of=waiting)
    )


def _order_of(row: Any) -> tuple[Any, ...]:
    return row.priority.desc(), row.core_created_at, row.id


def _may_begin(row: Any, max_creates: int | None) -> ColumnElement[bool]:
    """A waiting job whose pause is over, whose service has none under way, and that is no create too many."""
    running = aliased(Job)
    busy = select(running.id).where(running.status == _PROCESSING, running.service_id == row.service_id)
    is_due = or_(row.available_at.is_(None), row.available_at <= db_now())
    condition = and_(row.status == _PENDING, is_due, ~busy.exists())
    if max_creates is None:
        return condition
    creating = aliased(Job)
    under_way = (
        select(func.count())
        .select_from(creating)
        .where(creating.status == _PROCESSING, creating.action == "create")
        .scalar_subquery()
    )
    return and_(condition, or_(row.action != "create", under_way < max_creates))


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


def put_back(session: Session, lease: Lease, *, pause_s: float, reason: str | None = None) -> None:
    """Return the job to the queue, to be taken up again after `pause_s`."""
    _check(JobStatus.PROCESSING, JobStatus.PENDING)
    _write(
        session,
        lease,
        status=JobStatus.PENDING,
        owner=None,
        lease_until=None,
        available_at=db_now(pause_s) if pause_s > 0 else None,
        error_message=reason,
    )


def renew(session: Session, owner: str, *, lease_s: float) -> dict[int, bool]:
    """Extend every lease of this owner; return job id to "cancel was asked for"."""
    stmt = (
        update(Job)
        .where(Job.owner == owner, Job.status == _PROCESSING)
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
    stmt = select(Job.id, Job.crashes, Job.epoch).where(Job.status == _PROCESSING, gone)
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
    return _rows(session, _release(owner))


def release(session: Session, job_id: int, owner: str) -> bool:
    """Put back one job that its owner holds and does not work on; False when it has ended meanwhile."""
    return _rows(session, _release(owner).where(Job.id == job_id)) == 1


def _release(owner: str) -> Update:
    held = update(Job).where(Job.owner == owner, Job.status == _PROCESSING)
    return held.values(status=JobStatus.PENDING, owner=None, lease_until=None, available_at=None, epoch=Job.epoch + 1)


def tick(session: Session, name: str, interval_s: float, *, force: bool = False) -> bool:
    """Start a period of a critical job; True for the one caller that is to run it.

    A period is over a little early, so that a timer which fires a few milliseconds short does not skip a turn.
    """
    now = utc_now()
    first = {"name": name, "interval_s": interval_s, "failures": 0, "runs": 0}
    # Two nodes may both be the first: the row is made once, and the UPDATE below picks the winner.
    session.execute(_insert(session, CriticalJob).values(first).on_conflict_do_nothing(index_elements=["name"]))
    is_due = or_(CriticalJob.due_at.is_(None), CriticalJob.due_at <= db_now(), CriticalJob.interval_s != interval_s)
    stmt = update(CriticalJob).where(CriticalJob.name == name)
    stmt = stmt if force else stmt.where(is_due)
    values = {"due_at": db_now(interval_s * 0.8), "interval_s": interval_s, "last_started_at": now}
    return _rows(session, stmt.values(**values)) == 1


def tock(session: Session, name: str, *, error: str | None) -> None:
    """Write down how a period of a critical job ended."""
    now = utc_now()
    values: dict[str, Any] = {"last_finished_at": now, "runs": CriticalJob.runs + 1, "last_error": error}
    if error is None:
        values |= {"last_ok_at": now, "failures": 0}
    else:
        values |= {"failures": CriticalJob.failures + 1}
    session.execute(update(CriticalJob).where(CriticalJob.name == name).values(**values))


def _check(before: JobStatus, after: JobStatus) -> None:
    if after not in TRANSITIONS[before]:
        raise ValueError(f"{before} -> {after} is not a transition")


def _insert(session: Session, table: type[Job | CriticalJob]) -> postgresql.Insert | sqlite.Insert:
    """Return the dialect's own INSERT, the only one that knows ON CONFLICT."""
    return postgresql.insert(table) if session.get_bind().dialect.name == "postgresql" else sqlite.insert(table)


def _rows(session: Session, stmt: Update | Any) -> int:
    return cast("CursorResult[Any]", session.execute(stmt)).rowcount


# --- reports ------------------------------------------------------------------------------------------------------


def due_reports(session: Session, limit: int) -> Sequence[Job]:
    """Return ended jobs that FulcrumCore has not acknowledged and that may be tried now, oldest first."""
    stmt = (
        select(Job)
        .where(Job.report_state == _DUE)
        .where(or_(Job.report_after.is_(None), Job.report_after <= db_now()))
        .order_by(Job.finished_at, Job.id)
        .limit(limit)
    )
    return session.scalars(stmt).all()


def note_reported(session: Session, job_id: int, state: ReportState, note: str = "") -> None:
    """Write down FulcrumCore's answer; a report that was settled before stays as it was."""
    session.execute(
        update(Job)
        .where(Job.id == job_id, Job.report_state == ReportState.DUE)
        .values(report_state=state, reported_at=utc_now(), report_note=note or None, report_after=None)
    )


def postpone_report(session: Session, job_id: int, *, pause_s: float, note: str) -> None:
    """Try the report again after `pause_s`."""
    session.execute(
        update(Job)
        .where(Job.id == job_id, Job.report_state == ReportState.DUE)
        .values(report_attempts=Job.report_attempts + 1, report_after=db_now(pause_s), report_note=note)
    )


def replace_outcome(session: Session, job_id: int, result: JobResult) -> None:
    """Turn a completion that FulcrumCore will never take into the failure that it is told instead."""
    session.execute(
        update(Job)
        .where(Job.id == job_id, Job.report_state == ReportState.DUE)
        .values(status=JobStatus.FAILED, error_code=result.code, error_message=result.message)
    )


def hasten_reports(session: Session) -> int:
    """Make every waiting report due at once: FulcrumCore answers again."""
    stmt = update(Job).where(Job.report_state == ReportState.DUE, Job.report_after.is_not(None))
    return _rows(session, stmt.values(report_after=None))


# --- questions and operators' verbs -------------------------------------------------------------------------------


def find(session: Session, reference: str) -> Job | None:
    """Return a job by our number, FulcrumCore's id, or an unambiguous beginning of that id."""
    if not reference:
        return None  # the beginning of every id: an operator's empty variable must not pick the only job
    if _is_number(reference) and (job := session.get(Job, int(reference))) is not None:
        return job
    begins = Job.fulcrum_id.startswith(reference.lower(), autoescape=True)
    found = session.scalars(select(Job).where(begins).limit(2)).all()
    return found[0] if len(found) == 1 else None


def _is_number(reference: str) -> bool:
    """Tell our numbers from everything else that has digits: other scripts' ones, and numbers beyond any column."""
    return reference.isascii() and reference.isdecimal() and len(reference) < 10


def listing(  # noqa: PLR0913 (one filter each)
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
    if action:
        stmt = stmt.where(Job.action == action)
    if service_id:
        stmt = stmt.where(Job.service_id == service_id)
    if unreported:
        stmt = stmt.where(Job.report_state == ReportState.DUE)
    return session.scalars(stmt).all()


def open_of(session: Session, service_id: str) -> Job | None:
    """Return the service's job that has not ended, the one under way before one that waits."""
    stmt = select(Job).where(Job.service_id == service_id, Job.status.in_([JobStatus.PENDING, JobStatus.PROCESSING]))
    return session.scalar(stmt.order_by(Job.status == JobStatus.PENDING, Job.id).limit(1))


def counts(session: Session) -> dict[str, int]:
    """Return how many jobs there are by status, and how many reports are due."""
    found = {status.value: 0 for status in JobStatus}
    # One question an index each: rows are fat, and a million ended ones must not be read to count the open ones.
    for condition in (Job.status == _PENDING, Job.status == _PROCESSING, Job.status.in_(_ENDED)):
        found |= dict(session.execute(select(Job.status, func.count()).where(condition).group_by(Job.status)).all())
    due = select(func.count()).select_from(Job).where(Job.report_state == _DUE)
    return found | {"reports_due": session.scalar(due) or 0}


def known_ids(session: Session, fulcrum_ids: Sequence[str]) -> set[str]:
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
    if _rows(session, ended_here):
        return JobStatus.FAILED
    asked = update(Job).where(Job.id == job_id, Job.status == JobStatus.PROCESSING).values(cancel_requested=True)
    return JobStatus.PROCESSING if _rows(session, asked) else None


def retry_now(session: Session, job_id: int) -> str:
    """End a job's waiting: for its next attempt, or for its next report. Returns which of them, '' for neither."""
    attempt = update(Job).where(Job.id == job_id, Job.status == JobStatus.PENDING).values(available_at=None)
    if _rows(session, attempt):
        return "attempt"
    report = update(Job).where(Job.id == job_id, Job.report_state == ReportState.DUE).values(report_after=None)
    return "report" if _rows(session, report) else ""


def prune(session: Session, *, before: datetime, limit: int) -> tuple[int, list[str]]:
    """Delete at most `limit` jobs that ended and were settled before; return how many, and their runs' idents."""
    old = (
        select(Job.id)
        .where(Job.status.in_(_ENDED), Job.finished_at < before, Job.report_state != ReportState.DUE)
        .order_by(Job.finished_at)
        .limit(limit)
    )
    job_ids = session.scalars(old).all()
    idents = list(session.scalars(select(Run.ident).where(Run.job_id.in_(job_ids))))
    session.execute(delete(Run).where(Run.job_id.in_(job_ids)))
    session.execute(delete(Job).where(Job.id.in_(job_ids)))
    return len(job_ids), idents


def prune_nodes(session: Session, *, before: datetime) -> int:
    """Forget starts of the agent that were last seen before."""
    return _rows(session, delete(Node).where(Node.seen_at < before))
