"""The nodes: one row for each start of an agent process. Nothing here commits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from executor.database.statements import rows_changed
from executor.database.tables import Node


def recent(session: Session, limit: int) -> Sequence[Node]:
    """Return the starts of agents, the last seen first."""
    return session.scalars(select(Node).order_by(Node.seen_at.desc(), Node.id).limit(limit)).all()


def prune(session: Session, *, before: datetime) -> int:
    """Forget starts of the agent that were last seen before."""
    return rows_changed(session, delete(Node).where(Node.seen_at < before))
