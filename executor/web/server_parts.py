"""Defines the objects that the pages share with the guard, which refuses requests of callers without access."""

from __future__ import annotations

from dataclasses import dataclass, field

from executor.web.access import Access
from executor.web.agent_view import AgentHandle
from executor.web.sessions import Sessions
from executor.web.streams import StreamCounter
from executor.web.wrong_tokens import WrongTokenCounter


@dataclass(frozen=True, kw_only=True)
class ServerParts:
    """The objects of the HTTP server that the guard and the pages share."""

    agent_handle: AgentHandle  #: gives the pages access to the agent
    access: Access  #: decides who may read the pages
    sessions: Sessions
    wrong_tokens: WrongTokenCounter
    streams: StreamCounter = field(default_factory=StreamCounter)
