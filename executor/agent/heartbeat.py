"""Runs the critical job (periodic task) Heartbeat: sends the agent's status, and reads whether the agent is disabled.

An operator of FulcrumCore can disable an agent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from executor.agent.state import AgentState
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import FulcrumAgent
from executor.log import get_logger

log = get_logger(__name__)


@dataclass(kw_only=True)
class Heartbeat:
    """Sends heartbeats: calls `GET /agents/me` and, unless the agent is disabled, `PUT /agents/me/status`.

    A FulcrumAgent is this agent as FulcrumCore describes it.
    """

    fulcrum: FulcrumClient
    state: AgentState
    #: Called once, when FulcrumCore has sent this agent's id for the first time.
    on_agent_identified: Callable[[FulcrumAgent], object] = lambda _agent: None
    #: Called at the end of the heartbeat that called `on_agent_identified`, unless this heartbeat fails to send the
    #: status. Later heartbeats do not call it.
    on_first_heartbeat_sent: Callable[[], object] = lambda: None

    def send(self) -> None:
        """Send one heartbeat. Raises FulcrumUnavailable.

        A disabled agent does not send its status, because FulcrumCore would then enable the agent again.
        """
        fulcrum_agent = self.fulcrum.get_own_agent()
        self.state.fulcrum_link.record_answer()  # ends a recorded outage of FulcrumCore
        is_first = not self.state.agent_id
        if is_first:
            self.state.agent_id = fulcrum_agent.id
            log.info("agent_identified", agent_id=fulcrum_agent.id, name=fulcrum_agent.name)
            self.on_agent_identified(fulcrum_agent)
            self.state.poll_requested.set()  # wakes the poller, which waits until the agent's id is known
        elif fulcrum_agent.id != self.state.agent_id and not self.state.is_token_of_other_agent:
            self.state.is_token_of_other_agent = True  # the token now belongs to another agent of FulcrumCore
            log.error("agent_identity_changed", old_agent_id=self.state.agent_id, agent_id=fulcrum_agent.id)
        self._record_whether_disabled(fulcrum_agent)
        if not self.state.is_disabled:
            self.fulcrum.put_status("Connected")
        self.state.heartbeat_at = time.time()
        if is_first:
            self.on_first_heartbeat_sent()

    def _record_whether_disabled(self, fulcrum_agent: FulcrumAgent) -> None:
        """Record in `state` whether an operator has disabled this agent in FulcrumCore, and log each change."""
        if fulcrum_agent.is_disabled != self.state.is_disabled:
            if fulcrum_agent.is_disabled:
                log.warning("agent_disabled", status=fulcrum_agent.status)
            else:
                log.warning("agent_enabled", status=fulcrum_agent.status)
        self.state.is_disabled = fulcrum_agent.is_disabled
