"""FulcrumCore's API as an administrator may use it, as far as an agent is set up by it (`bootstrap.py`).

Lists are read leniently and whole, because a second object of the same name is answered with a 500, not with a no.
Source: section 9.3 of the FulcrumCore reference.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict, Field

from executor.errors import FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient, read_answer
from executor.fulcrum.types import CoreId, CoreModel


class Collection(StrEnum):
    """What an administrator makes for an agent."""

    SERVICE_TYPES = "service-types"
    AGENT_TYPES = "agent-types"
    METRIC_TYPES = "metric-types"
    PARTICIPANTS = "participants"
    AGENTS = "agents"


class CoreObject(CoreModel):
    """An object with all its members as they came, to compare them with those that we would send."""

    model_config = ConfigDict(extra="allow")

    name: str | None = None

    @property
    def members(self) -> dict[str, Any]:
        """Everything but id and name."""
        return dict(self.model_extra or {})


class CoreToken(CoreModel):
    """A token; its value is told once, to who made it."""

    name: str | None = None
    role: str | None = None
    expire_at: datetime | None = None
    agent_id: CoreId | None = None
    value: str | None = Field(default=None, repr=False)


class FulcrumAdmin(FulcrumClient):
    """The client with an administrator's token. A call raises what the agent's calls raise."""

    def objects(self, collection: Collection) -> list[CoreObject]:
        """List everything of one kind."""
        return list(self._pages(CoreObject, f"/{collection}", {"sort": "name"}))

    def create(self, collection: Collection, members: dict[str, Any]) -> CoreObject:
        """Make one object. A name that is taken is FulcrumUnavailable: look before, and look again after it."""
        path = f"/{collection}"
        return read_answer(CoreObject, f"POST {path}", self._http.json("POST", path, body=members))

    def tokens_of_agent(self, agent_id: str) -> list[CoreToken]:
        """List the tokens that log in as this agent, expired ones included."""
        tokens = self._pages(CoreToken, "/tokens", {"sort": "name"})
        return [token for token in tokens if token.agent_id == agent_id]

    def create_agent_token(self, agent_id: str, name: str, expires_at: datetime) -> str:
        """Make a token for an agent; return its value. Without a time it would live for a day."""
        body = {"name": name, "role": "agent", "scopeId": agent_id, "expireAt": f"{expires_at:%Y-%m-%dT%H:%M:%SZ}"}
        made = read_answer(CoreToken, "POST /tokens", self._http.json("POST", "/tokens", body=body))
        if not made.value:
            raise FulcrumUnavailable("POST /tokens: the answer holds no token")
        return made.value
