"""Runs the critical job (periodic task) Heartbeat: sends the agent's status, and reads whether the agent is disabled.

An operator of FulcrumCore can disable an agent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from executor.agent.state import AgentState
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import CoreAgent
from executor.log import get_logger

log = get_logger(__name__)


@dataclass(kw_only=True)
class Heartbeat:
    """Sends heartbeats: calls `GET /agents/me` and, unless the agent is disabled, `PUT /agents/me/status`."""

    fulcrum: FulcrumClient
    state: AgentState
    on_agent_identified: Callable[[CoreAgent], object] = lambda _agent: None  #: called once, before the first heartbeat
    on_first_heartbeat_sent: Callable[[], object] = lambda: None  #: called once, after the first heartbeat

    def send(self) -> None:
        """Send one heartbeat. Raises FulcrumUnavailable.

        A disabled agent does not send its status, because FulcrumCore would then enable the agent again.
        """
        core_agent = self.fulcrum.get_self()
        self.state.fulcrum_link.record_answer()
        is_first = not self.state.agent_id
        if is_first:
            self.state.agent_id = core_agent.id
            log.info("agent_identified", agent_id=core_agent.id, name=core_agent.name)
            self.on_agent_identified(core_agent)
            self.state.poll_requested.set()  # the poller needs the agent's id, and waits for it
        elif core_agent.id != self.state.agent_id and not self.state.has_identity_changed:
            self.state.has_identity_changed = True
            log.error("agent_identity_changed", old_agent_id=self.state.agent_id, agent_id=core_agent.id)
        self._record_whether_disabled(core_agent)
        if not self.state.is_disabled:
            self.fulcrum.put_status("Connected")
        self.state.heartbeat_at = time.time()
        if is_first:
            self.on_first_heartbeat_sent()

    def _record_whether_disabled(self, core_agent: CoreAgent) -> None:
        """Record in `state` whether an operator has disabled this agent in FulcrumCore, and log each change."""
        if core_agent.is_disabled != self.state.is_disabled:
            if core_agent.is_disabled:
                log.warning("agent_disabled", status=core_agent.status)
            else:
                log.warning("agent_enabled", status=core_agent.status)
        self.state.is_disabled = core_agent.is_disabled
