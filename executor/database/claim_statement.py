"""The statement of `job_queue.claim`: which job may be claimed next, in one UPDATE."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, true, update
from sqlalchemy.orm import aliased

from executor.database.tables import PENDING_LITERAL, PROCESSING_LITERAL, Job, db_now
from executor.model import PROBATION_CRASHES, JobStatus


@dataclass(frozen=True)
class Turn:
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


@lru_cache(maxsize=512)  # to put it together takes ten times as long as to run it
def claim_statement(owner: str, lease_s: float, max_creates: int | None, turn: Turn) -> Any:
    ours, suspect = aliased(Job), aliased(Job)
    beside = select(ours.id).where(ours.status == PROCESSING_LITERAL, ours.owner == owner).exists()
    suspected = select(suspect.id).where(
        suspect.status == PROCESSING_LITERAL, suspect.owner == owner, suspect.crashes >= PROBATION_CRASHES
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


def _next_candidate(max_creates: int | None, turn: Turn) -> Select[int]:
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
    busy = select(running.id).where(running.status == PROCESSING_LITERAL, running.service_id == row.service_id)
    is_due = or_(row.available_at.is_(None), row.available_at <= db_now())
    condition = and_(row.status == PENDING_LITERAL, is_due, ~busy.exists())
    if max_creates is None:
        return condition
    creating = aliased(Job)
    under_way = (
        select(func.count())
        .select_from(creating)
        .where(creating.status == PROCESSING_LITERAL, creating.action == "create")
        .scalar_subquery()
    )
    return and_(condition, or_(row.action != "create", under_way < max_creates))
