"""Stores the pauses that operators start: during a pause, all agents or one node claim no jobs. No function commits.

A node is an agent process and the later processes with the same data folder, not a Proxmox node. `job_queue.claim`
reads the pause of all agents. An agent process reads the pause of its node when the process renews its leases. A pause
does not stop running jobs.
"""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from executor.database.statements import insert_into
from executor.database.tables.agents import Node, Pause
from executor.database.times import utc_now
from executor.redaction import redactor

#: The scope of a pause of all agents that use the database.
ALL_AGENTS = "all"
#: The scope of a pause of one node is this prefix and the node's installation id. For a node without an installation
#: id, it is this prefix and the boot id.
NODE_SCOPE_PREFIX = "node:"
#: A longer reason is cut to this length.
MAX_REASON_LENGTH = 500


def scope_of_node(node: Node) -> str:
    """Return the scope of a pause of this node. The scope stays the same when the node's agent process is restarted."""
    return NODE_SCOPE_PREFIX + (node.installation_id or node.id)


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
    pause = find_pause(session, scope)
    if pause is not None:
        session.execute(delete(Pause).where(Pause.scope == scope))
    return pause


def find_pause(session: Session, scope: str = ALL_AGENTS) -> Pause | None:
    """Return the pause of this scope, or None if there is none."""
    return session.get(Pause, scope)


def node_pauses_by_scope(session: Session) -> dict[str, Pause]:
    """Return the pauses of single nodes. The keys are their scopes."""
    has_prefix = Pause.scope.startswith(NODE_SCOPE_PREFIX, autoescape=True)
    return {pause.scope: pause for pause in session.scalars(select(Pause).where(has_prefix))}
