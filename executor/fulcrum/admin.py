"""Lists and creates objects in FulcrumCore, adds service types to agent types, and deletes tokens.

`bootstrap.py` uses this module to create what an agent needs in FulcrumCore, such as its agent type and token.

If an object of the same name exists already, FulcrumCore answers 500 to the request that creates the object. So the
caller must list all objects of a kind before it creates one.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict, Field

from executor.errors import FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient, parse_response
from executor.fulcrum.types import FulcrumId, FulcrumModel


class ApiCollection(StrEnum):
    """A collection of FulcrumCore's API: all objects of one kind. The value is the collection's path in the API."""

    SERVICE_TYPES = "service-types"
    AGENT_TYPES = "agent-types"
    METRIC_TYPES = "metric-types"
    PARTICIPANTS = "participants"  #: the organizations in FulcrumCore; a provider is a participant
    AGENTS = "agents"


class FulcrumObject(FulcrumModel):
    """An object in FulcrumCore.

    It has every received member, so that `bootstrap.py` can compare an existing object with the wanted one.
    """

    model_config = ConfigDict(extra="allow")

    name: str | None = None

    @property
    def members_except_id_and_name(self) -> dict[str, Any]:
        """Every member except id and name."""
        return dict(self.model_extra or {})


class FulcrumToken(FulcrumModel):
    """A token. FulcrumCore returns its `value` only in the response to the request that creates it."""

    name: str | None = None
    role: str | None = None
    expire_at: datetime | None = None
    agent_id: FulcrumId | None = None
    value: str | None = Field(default=None, repr=False)


class FulcrumAdmin(FulcrumClient):
    """Calls FulcrumCore's API with an administrator's token. It raises the same exceptions as FulcrumClient."""

    def list_objects(self, collection: ApiCollection) -> list[FulcrumObject]:
        """List all objects of one kind."""
        return list(self._list_all_objects(FulcrumObject, f"/{collection}", {"sort": "name"}))

    def create_object(self, collection: ApiCollection, members: dict[str, Any]) -> FulcrumObject:
        """Create one object.

        FulcrumUnavailable may mean that an object of this name exists. So the caller must list the objects before this
        call, and again after this exception.
        """
        path = f"/{collection}"
        response = self._http.request_json("POST", path, body=members)
        return parse_response(FulcrumObject, f"POST {path}", response)

    def add_service_type_to_agent_type(self, agent_type: FulcrumObject, service_type_id: str) -> FulcrumObject:
        """Let the agents of an agent type provide one more type of service. Return the changed agent type.

        FulcrumCore replaces the whole list of ids, so the current ids are sent, too.
        """
        path = f"/{ApiCollection.AGENT_TYPES}/{agent_type.id}"
        service_type_ids = agent_type.members_except_id_and_name.get("serviceTypeIds") or []
        response = self._http.request_json("PATCH", path, body={"serviceTypeIds": [*service_type_ids, service_type_id]})
        return parse_response(FulcrumObject, f"PATCH {path}", response)

    def delete_token(self, token_id: str) -> None:
        """Delete a token. FulcrumCore then refuses every request with this token."""
        self._http.request_without_result("DELETE", f"/tokens/{token_id}")

    def list_agent_tokens(self, agent_id: str) -> list[FulcrumToken]:
        """List the tokens of an agent, including expired ones."""
        tokens = self._list_all_objects(FulcrumToken, "/tokens", {"sort": "name"})
        return [token for token in tokens if token.agent_id == agent_id]

    def create_agent_token(self, agent_id: str, name: str, expires_at: datetime) -> str:
        """Create a token for an agent and return its value.

        `expires_at` is always sent, because a token would otherwise expire after one day.
        """
        # `scopeId` is the id of the agent that uses the token.
        body = {"name": name, "role": "agent", "scopeId": agent_id, "expireAt": f"{expires_at:%Y-%m-%dT%H:%M:%SZ}"}
        response = self._http.request_json("POST", "/tokens", body=body)
        token = parse_response(FulcrumToken, "POST /tokens", response)
        if not token.value:
            raise FulcrumUnavailable("POST /tokens: the response has no token")
        return token.value
