"""Stores one row in the table `nodes` for each start of an agent process. No function commits.

The id of the row is the `boot_id` of the process, a random id that the process chooses at its start. The column `owner`
of a job holds the same id. A row of this table is not a Proxmox node.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from executor.database.statements import rows_changed
from executor.database.tables import Node, utc_now

#: Length of the column `nodes.stop_reason`.
MAX_REASON_LENGTH = 40


def add(session: Session, node_id: str, *, host: str, pid: int, version: str, concurrency: int) -> None:  # noqa: PLR0913 (one column each)
    """Store the start of an agent process. `concurrency` is the number of jobs that it runs in parallel."""
    now = utc_now()
    node = Node(id=node_id, host=host, pid=pid, version=version, started_at=now, seen_at=now, draining=False)
    node.concurrency_wanted = node.concurrency = concurrency
    session.add(node)


def note_seen(session: Session, node_id: str) -> None:
    """Store that the agent process is running at this time."""
    session.execute(update(Node).where(Node.id == node_id).values(seen_at=utc_now()))


def note_stopped(session: Session, node_id: str, reason: str) -> None:
    """Store that the agent process stops, and why."""
    values = {"stopped_at": utc_now(), "stop_reason": reason[:MAX_REASON_LENGTH], "draining": True}
    session.execute(update(Node).where(Node.id == node_id).values(**values))


def recent(session: Session, limit: int) -> Sequence[Node]:
    """Return the agent processes that were running most recently, the latest first."""
    return session.scalars(select(Node).order_by(Node.seen_at.desc(), Node.id).limit(limit)).all()


def prune(session: Session, *, seen_before: datetime) -> int:
    """Delete the rows of agent processes that were last running before `seen_before`; return the number of rows."""
    return rows_changed(session, delete(Node).where(Node.seen_at < seen_before))
