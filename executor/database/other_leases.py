"""Reads the leases of jobs that other agent processes own. `agent/reaper` decides which of the jobs are reaped."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from executor.database.literals import PROCESSING_LITERAL  # an SQL literal, so that SQLite uses partial indexes
from executor.database.tables.agents import AgentProcessRow
from executor.database.tables.jobs import Job, Run
from executor.database.times import db_now


@dataclass(frozen=True, kw_only=True)
class LeaseOfOtherProcess:
    """The lease of a job that another agent process owns, as it was stored when the row was read."""

    job_id: int
    owner: str
    epoch: int
    lease_until: datetime | None  #: when the lease expires; a lease without this time counts as expired
    deadline_at: datetime  #: when FulcrumCore fails a job that has not ended (by FulcrumCore's clock)
    is_expired: bool  #: True if the lease has expired, by the database's clock
    #: True if the owner fences itself: if it cannot renew its leases, it ends its own runs before the leases expire
    is_owner_fencing: bool
    run_ident: str | None  #: the ident of the job's latest run, which may be a run of an earlier attempt
    has_stored_run: bool  #: True if the current attempt has stored a run; a run is stored before it starts


def leases_of_other_processes(session: Session, boot_id: str) -> list[LeaseOfOtherProcess]:
    """Return the leases of all agent processes except this one, whose id is `boot_id`. No lease is changed."""
    is_expired = Job.lease_until < db_now()
    run_of_attempt = select(Run.id).where(Run.job_id == Job.id, Run.attempt == Job.attempt)
    stmt = (
        select(
            Job.id.label("job_id"),
            Job.owner.label("owner"),
            Job.epoch.label("epoch"),
            Job.lease_until.label("lease_until"),
            Job.deadline_at.label("deadline_at"),
            func.coalesce(is_expired, True).label("is_expired"),
            func.coalesce(AgentProcessRow.fences, False).label(
                "is_owner_fencing"
            ),  # the owner's row may have been deleted
            Job.run_ident.label("run_ident"),
            run_of_attempt.exists().label("has_stored_run"),
        )
        .outerjoin(AgentProcessRow, AgentProcessRow.id == Job.owner)
        .where(Job.status == PROCESSING_LITERAL, Job.owner != boot_id)
        .order_by(Job.id)
    )
    return [LeaseOfOtherProcess(**lease) for lease in session.execute(stmt).mappings()]
