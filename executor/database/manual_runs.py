"""Stores the playbook runs that operators start with commands. During such a run, no job of the same service starts.

A run that has not ended holds a lease, which its command renews. `start` refuses a run while a job or another run of
the service is in progress. No agent claims a job of a service while a run of this service holds a valid lease.
So an operator and an agent never work on one VM at the same time, even on different hosts. The caller of each
function commits the transaction.

If the lease of a run cannot be renewed, the playbook is ended before the lease expires (`cli/service_lock.py`). So no
playbook runs longer than the lease of its run.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, select, update
from sqlalchemy.orm import Session

from executor.database.literals import PROCESSING_LITERAL
from executor.database.statements import execute_and_count
from executor.database.tables.jobs import Job, ManualRun
from executor.database.times import db_now, utc_now
from executor.model import RunStatus

#: The key of a PostgreSQL advisory lock. `start` takes the lock exclusively, and each claim of a job takes it as a
#: shared lock. Without the lock, a claim and a simultaneous start would not see each other's row. The value is the
#: ASCII text "SMIM".
MANUAL_RUN_LOCK_KEY = 0x534D494D
#: The maximum duration of a lease. If the end of a lease is farther in the future than this, the lease counts as
#: expired: it was written before the database's clock was set back.
MAX_LEASE_S = 3600.0
#: The error message of a run whose command has not stored the run's end.
REASON_END_NOT_STORED = "the command ended without storing the end of the run"


@dataclass(frozen=True, kw_only=True)
class NewManualRun:
    """What `start` stores about a run."""

    ident: str
    service_id: str
    vmid: int | None
    action: str
    who: str  #: the operator's user name in the operating system
    host: str
    pid: int


def is_in_progress(run: Any = ManualRun) -> ColumnElement[bool]:
    """Return the SQL condition that a run has not ended and that its lease is valid. `run` is the table or an alias."""
    # `db_now(n)` is the time of the database's clock plus n seconds.
    has_valid_lease = (run.lease_until > db_now()) & (run.lease_until <= db_now(MAX_LEASE_S))
    return and_(run.ended_at.is_(None), has_valid_lease)


def start(session: Session, new_run: NewManualRun, *, lease_s: float) -> Job | ManualRun | None:
    """Store a run before it starts.

    Returns None if the run was stored. If a job of the same service is processing, or another run that an operator
    started for the service is in progress, returns this job or run, and stores nothing.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(MANUAL_RUN_LOCK_KEY)))
    service_id = new_run.service_id
    job = session.scalar(select(Job).where(Job.status == PROCESSING_LITERAL, Job.service_id == service_id))
    obstacle = job or run_in_progress(session, service_id)
    if obstacle is not None:
        return obstacle
    # No run of the service is in progress. So each of its runs without a stored end has lost its lease, and is ended.
    end_expired_runs = update(ManualRun).where(ManualRun.service_id == service_id, ManualRun.ended_at.is_(None))
    session.execute(end_expired_runs.values(ended_at=utc_now(), status=RunStatus.FAILED, reason=REASON_END_NOT_STORED))
    columns = {"started_at": utc_now(), "lease_until": db_now(lease_s)}
    session.add(ManualRun(**vars(new_run), **columns))
    session.flush()
    return None


def run_in_progress(session: Session, service_id: str) -> ManualRun | None:
    """Return the service's run in progress that an operator started, or None."""
    return session.scalar(select(ManualRun).where(ManualRun.service_id == service_id, is_in_progress()))


def services_with_run_in_progress(session: Session, service_id: str | None = None) -> set[str]:
    """Return the ids of the services with a run in progress. With `service_id`, check only this service."""
    stmt = select(ManualRun.service_id).where(is_in_progress())
    return set(session.scalars(stmt if service_id is None else stmt.where(ManualRun.service_id == service_id)))


def renew(session: Session, ident: str, *, lease_s: float, output: str | None = None) -> bool:
    """Extend the lease of a run. Store `output`, an excerpt of its playbook's output; None keeps the stored excerpt.

    Return False if the end of the run is stored or its lease has expired. Then another run or job of the service may
    have started.
    """
    stmt = update(ManualRun).where(ManualRun.ident == ident, is_in_progress())
    if output is not None:
        stmt = stmt.values(output=output)
    return execute_and_count(session, stmt.values(lease_until=db_now(lease_s))) == 1


def finish(  # noqa: PLR0913 (each value is a column)
    session: Session, ident: str, *, status: RunStatus, reason: str, upids: list[str], output: str
) -> None:
    """Store the end of a run. If the end is already stored, change nothing."""
    stmt = update(ManualRun).where(ManualRun.ident == ident, ManualRun.ended_at.is_(None))
    values = {"status": status, "reason": reason or None, "upids": upids, "output": output}
    session.execute(stmt.values(ended_at=utc_now(), **values))


def count_rows_of_service(session: Session, service_id: str) -> int:
    """Return how many runs of a service are stored."""
    stmt = select(func.count()).select_from(ManualRun).where(ManualRun.service_id == service_id)
    return session.scalar(stmt) or 0


def delete_rows_of_service(session: Session, service_id: str) -> None:
    """Delete the runs of a service."""
    session.execute(delete(ManualRun).where(ManualRun.service_id == service_id))


def prune(session: Session, *, started_before: datetime, limit: int) -> int:
    """Delete at most `limit` runs that started before `started_before` and are not in progress; return their number."""
    old_runs = select(ManualRun.id).where(ManualRun.started_at < started_before, ~is_in_progress())
    old_ids = session.scalars(old_runs.order_by(ManualRun.started_at).limit(limit)).all()
    return execute_and_count(session, delete(ManualRun).where(ManualRun.id.in_(old_ids)))
