"""Stores which agent of FulcrumCore uses a PostgreSQL database, and for which Proxmox cluster. No function commits.

In this module, a use is a pair: the agent that uses the database, and its cluster. All processes of one agent share the
agent's jobs. Another agent cannot report these jobs: FulcrumCore accepts only the token of the agent that claimed them.
So only one agent at a time uses a database. The only row of the table `database_use` names this agent. An agent with
another cluster counts as another agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, update
from sqlalchemy.orm import Session

from executor.database.statements import execute_and_count, insert_into
from executor.database.tables.agents import AgentProcessRow, DatabaseUse
from executor.database.times import db_now

#: The id of the only row.
ROW_ID = 1


@dataclass(frozen=True, kw_only=True)
class AgentAndCluster:
    """A use: the agent that uses the database, and the agent's cluster."""

    agent_id: str
    cluster: str


@dataclass(frozen=True, kw_only=True)
class UseByOtherAgent(AgentAndCluster):
    """A use by another agent or for another cluster, as it was when the row was read.

    While the other agent uses the database, it regularly updates `confirmed_at` in the row.
    """

    confirmed_at: datetime


def confirm_use(session: Session, use: AgentAndCluster) -> UseByOtherAgent | None:
    """Store the current time as the last confirmation of `use`. Return None, or the different use that is stored.

    If no use is stored yet, `use` is stored. If a different use is stored, nothing is changed. The caller has checked
    that FulcrumCore accepts this agent's token.
    """
    if execute_and_count(session, update(DatabaseUse).where(_is_row_of_use(use)).values(confirmed_at=db_now())):
        return None
    stmt = insert_into(session, DatabaseUse).values(id=ROW_ID, confirmed_at=db_now(), **vars(use))
    session.execute(stmt.on_conflict_do_nothing(index_elements=["id"]))
    return find_use_by_other_agent(session, use)


def find_use_by_other_agent(session: Session, use: AgentAndCluster) -> UseByOtherAgent | None:
    """Return the use of the database by another agent or for another cluster, or None."""
    row = session.get(DatabaseUse, ROW_ID, populate_existing=True)
    if row is None or (row.agent_id, row.cluster) == (use.agent_id, use.cluster):
        return None
    return UseByOtherAgent(agent_id=row.agent_id, cluster=row.cluster, confirmed_at=row.confirmed_at)


def take_over(session: Session, use: AgentAndCluster, replaced_use: UseByOtherAgent) -> bool:
    """Replace the use `replaced_use` with `use`. Return True if it was replaced.

    If `replaced_use` was confirmed after the caller had read it, nothing is stored.
    """
    is_unchanged = _is_row_of_use(replaced_use) & (DatabaseUse.confirmed_at == replaced_use.confirmed_at)
    stmt = update(DatabaseUse).where(is_unchanged).values(confirmed_at=db_now(), **vars(use))
    return execute_and_count(session, stmt) == 1


def store_agent_id_of_process(session: Session, boot_id: str, agent_id: str) -> None:
    """Store to which agent of FulcrumCore the agent process with the id `boot_id` belongs."""
    session.execute(update(AgentProcessRow).where(AgentProcessRow.id == boot_id).values(agent_id=agent_id))


def _is_row_of_use(use: AgentAndCluster) -> ColumnElement[bool]:
    is_use = (DatabaseUse.agent_id == use.agent_id) & (DatabaseUse.cluster == use.cluster)
    return is_use & (DatabaseUse.id == ROW_ID)
