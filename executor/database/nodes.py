"""Stores one row in the table `nodes` for each start of an agent process. No function commits.

A row of this table is not a Proxmox node. The id of a row is the `boot_id` of the process: a random id that the process
chooses at its start. The same id is in the column `owner` of each job that the process owns.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from executor.database.statements import execute_and_count
from executor.database.tables import Node, db_now, utc_now

#: The length of the column `nodes.stop_reason`.
MAX_STOP_REASON_LENGTH = 40


def add_agent(session: Session, boot_id: str, *, host: str, pid: int, version: str, concurrency: int) -> None:  # noqa: PLR0913 (one parameter for each column)
    """Store the start of an agent process. `concurrency` is the maximum number of jobs that it runs in parallel."""
    now = utc_now()
    node = Node(id=boot_id, host=host, pid=pid, version=version, started_at=now, seen_at=now, draining=False)
    node.concurrency = concurrency
    node.concurrency_wanted = concurrency  # the column is always equal to `concurrency`
    session.add(node)


def note_agent_seen(session: Session, boot_id: str) -> None:
    """Store the current time as the last time at which the agent process was running."""
    session.execute(update(Node).where(Node.id == boot_id).values(seen_at=utc_now()))


def note_agent_draining(session: Session, boot_id: str) -> None:
    """Store that the agent process claims no more jobs, and will stop when its running jobs have ended."""
    session.execute(update(Node).where(Node.id == boot_id).values(draining=True))


def note_agent_stopped(session: Session, boot_id: str, reason: str) -> None:
    """Store that the agent process has stopped, and the reason. The column `draining` becomes True if it is not yet."""
    columns = {"stopped_at": utc_now(), "stop_reason": reason[:MAX_STOP_REASON_LENGTH], "draining": True}
    session.execute(update(Node).where(Node.id == boot_id).values(**columns))


def recent(session: Session, limit: int) -> Sequence[Node]:
    """Return the rows of at most `limit` agent processes. The process that was running most recently is first."""
    return session.scalars(select(Node).order_by(Node.seen_at.desc(), Node.id).limit(limit)).all()


def not_stopped(session: Session) -> Sequence[Node]:
    """Return the rows of the agent processes that have not stored their stop. Some of them may have been killed."""
    return session.scalars(select(Node).where(Node.stopped_at.is_(None)).order_by(Node.seen_at.desc())).all()


def has_other_agents(session: Session, boot_id: str, *, within_s: float) -> bool:
    """Return whether another agent process has used the database within the last `within_s` seconds."""
    is_other = (Node.id != boot_id) & Node.stopped_at.is_(None) & (Node.seen_at >= db_now(-within_s))
    return session.scalar(select(Node.id).where(is_other).limit(1)) is not None


def prune(session: Session, *, seen_before: datetime) -> int:
    """Delete the rows of agent processes that were last running before `seen_before`. Return the number of rows."""
    return execute_and_count(session, delete(Node).where(Node.seen_at < seen_before))
