"""Runs the critical job Heartbeat: reports the agent's status to FulcrumCore, and reads whether it is disabled."""

from __future__ import annotations

import time
from dataclasses import dataclass

from executor.agent.state import AgentState
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import CoreAgent
from executor.log import get_logger

log = get_logger(__name__)


@dataclass(kw_only=True)
class Heartbeat:
    """Calls `GET /agents/me` and, unless the agent is disabled, `PUT /agents/me/status`."""

    fulcrum: FulcrumClient
    state: AgentState

    def send(self) -> None:
        """Send one heartbeat. Raises FulcrumUnavailable.

        A disabled agent only reads its own status, because sending a status would enable it again at FulcrumCore.
        """
        agent = self.fulcrum.get_self()
        self.state.fulcrum.note_up()
        if not self.state.agent_id:
            self.state.agent_id = agent.id
            log.info("agent_identified", agent_id=agent.id, name=agent.name)
            self.state.poll_requested.set()
        self._note_disabled(agent)
        if not self.state.disabled:
            self.fulcrum.put_status("Connected")
        self.state.heartbeat_at = time.time()

    def _note_disabled(self, agent: CoreAgent) -> None:
        """Store whether an operator has disabled this agent in FulcrumCore, and log each change."""
        disabled = agent.is_disabled
        if disabled != self.state.disabled:
            log.warning("agent_disabled" if disabled else "agent_enabled", status=agent.status)
        self.state.disabled = disabled
