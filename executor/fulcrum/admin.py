"""Lists and creates FulcrumCore's objects with an administrator's token, for `bootstrap.py`.

The caller reads each list completely before it creates an object of that kind, because FulcrumCore answers 500 when an
object of the same name exists already.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict, Field

from executor.errors import FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient, parse_response
from executor.fulcrum.types import CoreId, CoreModel


class Collection(StrEnum):
    """The kinds of objects that an administrator creates for an agent."""

    SERVICE_TYPES = "service-types"
    AGENT_TYPES = "agent-types"
    METRIC_TYPES = "metric-types"
    PARTICIPANTS = "participants"
    AGENTS = "agents"


class CoreObject(CoreModel):
    """An object of FulcrumCore with all its members as received, so that they can be compared with the wanted ones."""

    model_config = ConfigDict(extra="allow")

    name: str | None = None

    @property
    def members(self) -> dict[str, Any]:
        """Every member except id and name."""
        return dict(self.model_extra or {})


class CoreToken(CoreModel):
    """A token. FulcrumCore returns its `value` only in the response to the request that creates it."""

    name: str | None = None
    role: str | None = None
    expire_at: datetime | None = None
    agent_id: CoreId | None = None
    value: str | None = Field(default=None, repr=False)


class FulcrumAdmin(FulcrumClient):
    """Client with an administrator's token. Its methods raise the same errors as those of FulcrumClient."""

    def objects(self, collection: Collection) -> list[CoreObject]:
        """List all objects of one kind."""
        return list(self._list_all(CoreObject, f"/{collection}", {"sort": "name"}))

    def create(self, collection: Collection, members: dict[str, Any]) -> CoreObject:
        """Create one object.

        FulcrumUnavailable may mean that an object of this name exists already. So the caller lists the objects before
        this call, and again after that error.
        """
        path = f"/{collection}"
        return parse_response(CoreObject, f"POST {path}", self._http.request_json("POST", path, body=members))

    def tokens_of_agent(self, agent_id: str) -> list[CoreToken]:
        """List the tokens of an agent, expired ones included."""
        tokens = self._list_all(CoreToken, "/tokens", {"sort": "name"})
        return [token for token in tokens if token.agent_id == agent_id]

    def create_agent_token(self, agent_id: str, name: str, expires_at: datetime) -> str:
        """Create a token for an agent and return its value. FulcrumCore's default is one day."""
        body = {"name": name, "role": "agent", "scopeId": agent_id, "expireAt": f"{expires_at:%Y-%m-%dT%H:%M:%SZ}"}
        token = parse_response(CoreToken, "POST /tokens", self._http.request_json("POST", "/tokens", body=body))
        if not token.value:
            raise FulcrumUnavailable("POST /tokens: the response has no token")
        return token.value
