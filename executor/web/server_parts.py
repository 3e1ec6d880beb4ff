"""Defines the parts of the HTTP server that the guard and the pages share."""

from __future__ import annotations

from dataclasses import dataclass, field

from executor.web.access import Access
from executor.web.agent_view import AgentHandle
from executor.web.sessions import Sessions
from executor.web.streams import StreamCounter
from executor.web.wrong_tokens import WrongTokenCounter


@dataclass(frozen=True, kw_only=True)
class ServerParts:
    """The parts of the HTTP server that the guard and the pages share."""

    handle: AgentHandle
    access: Access
    sessions: Sessions
    wrong_tokens: WrongTokenCounter
    streams: StreamCounter = field(default_factory=StreamCounter)
