"""Defines the scopes of pauses: a pause applies to all agents that use the database, or to one node.

A node is an agent process and the later processes with the same data folder, not a Proxmox node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # The import of `AgentProcessRow` would import the ORM, which is slow.
    from executor.database.tables.agents import AgentProcessRow

#: The scope of a pause of all agents that use the database.
ALL_AGENTS = "all"
#: The scope of a pause of one node is this prefix and the node's installation id (the id of the data folder). For a
#: node without an installation id, it is this prefix and the id of the agent process.
NODE_SCOPE_PREFIX = "node:"


def scope_of_agent_process(node: AgentProcessRow) -> str:
    """Return the scope of a pause of this node. The scope stays the same when the node's agent process is restarted."""
    return NODE_SCOPE_PREFIX + (node.installation_id or node.id)
