"""Stores the pauses that operators start: during a pause, all agents or one node claim no jobs. No function commits.

All agents are all agent processes that use the database. A node is not a Proxmox node: it is the agent processes that
use the same data folder one after another. The scope of a pause is ALL_AGENTS, or `node:` followed by the id of a node.
`job_queue.claim` reads the pause of all agents. An agent process reads the pause of its node when the process renews
its leases. A pause does not stop running jobs.
"""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.orm import Session

from executor.database import agent_queries
from executor.database.pause_scopes import ALL_AGENTS
from executor.database.statements import insert_into
from executor.database.tables.agents import Pause
from executor.database.times import utc_now
from executor.redaction import redactor

#: A longer reason is cut to this length.
MAX_REASON_LENGTH = 500


def start(session: Session, *, who: str, reason: str, scope: str = ALL_AGENTS) -> bool:
    """Pause all agents or one node. Return False, and change nothing, if this scope is paused already."""
    values = {
        "scope": scope,
        "since": utc_now(),
        "who": who,
        "reason": redactor.redact(reason)[:MAX_REASON_LENGTH],
    }
    stmt = insert_into(session, Pause).values(values).on_conflict_do_nothing(index_elements=["scope"])
    return session.scalar(stmt.returning(Pause.scope)) is not None


def end(session: Session, scope: str = ALL_AGENTS) -> Pause | None:
    """End the pause of this scope. Return the ended pause, or None if there was none."""
    pause = agent_queries.find_pause(session, scope)
    if pause is not None:
        session.execute(delete(Pause).where(Pause.scope == scope))
    return pause
