"""Handles calls that manage tokens. An answer contains a token's value only if the call creates or regenerates it."""

from __future__ import annotations

from smith_lab.simulator import views
from smith_lab.simulator.entities import json_for_events
from smith_lab.simulator.paging import Listing, contains, equals, equals_uuid, sort_by
from smith_lab.simulator.problems import bad_request, forbidden, internal_error
from smith_lab.simulator.rows import Agent, Token
from smith_lab.simulator.store import DAY_S
from smith_lab.simulator.web import (
    ADMIN,
    ADMINS_AND_PARTICIPANTS,
    AGENT,
    NO_CONTENT,
    PARTICIPANT,
    Call,
    Endpoint,
    Owners,
    Reply,
)

_LISTING = Listing(
    filters={
        "name": contains("name"),
        "role": equals("role"),
        "participantId": equals_uuid("participant_id"),
        "agentId": equals_uuid("agent_id"),
    },
    sort_keys={"name": sort_by("name"), "expireAt": sort_by("expire_at"), "createdAt": sort_by("created_at")},
)


def _owners_of_token(row: Token) -> Owners:
    """Return the participant and the agent that own the token. Only this participant and admins may access it."""
    return Owners(participant_ids=(row.participant_id,), agent_id=row.agent_id)


def _find_token_owners(call: Call) -> Owners | None:
    """Return the owners of the token whose id is in the call's path (`call.id`).

    For an unknown id, return None; the server then answers 403 (Forbidden).
    """
    token = call.store.tokens.get(call.id)
    return _owners_of_token(token) if token else None


def _list_tokens(call: Call) -> Reply:
    """List the tokens that the caller may access. `full_token` adds the JSON of the token's agent and participant."""
    rows = (token for token in call.store.tokens.values() if call.may_access(_owners_of_token(token)))
    return _LISTING.reply(call, rows, lambda token: views.full_token(call.store, token))


def _owners_of_new_token(call: Call) -> Owners | None:
    """Return the owners of the new token, or None; for None, the server answers 403 (Forbidden).

    In the request, `scopeId` is the id of the token's participant or agent. An admin's token needs no `scopeId`.
    Return None if the role is admin and the caller is not an admin, or if the agent does not exist.
    Raises a 403 for an unknown role or a missing `scopeId`.

    After this function, the server refuses a caller that is neither an admin nor an owner. So a participant (a provider
    or a consumer) may create tokens for itself and for its agents.
    """
    role, scope_id = call.body.get("role"), call.body.get("scopeId")
    if role == ADMIN:
        return Owners() if call.caller_token.role == ADMIN else None  # an admin's token has no owners
    if role not in (PARTICIPANT, AGENT) or scope_id is None:
        raise forbidden("scopeId required, or invalid role")
    if role == PARTICIPANT:
        return Owners(participant_ids=(scope_id,))
    agent = call.store.agents.get(scope_id)
    return owners_of_agent(agent) if agent else None


def owners_of_agent(agent: Agent) -> Owners:
    """Return the owners of an agent: the agent itself and its provider."""
    return Owners(participant_ids=(agent.provider_id,), agent_id=agent.id)


def _create_token(call: Call) -> Reply:
    """Create a token; return the token with its value. Without `expireAt` in the request, it is valid for a day."""
    store, body = call.store, call.body
    if not body.get("name"):
        raise bad_request("token name cannot be empty")
    owner_ids: dict[str, str] = {}
    if body["role"] == PARTICIPANT:
        if body["scopeId"] not in store.participants:
            raise bad_request("participant does not exist")
        owner_ids = {"participant_id": body["scopeId"]}
    elif body["role"] == AGENT:
        owner_ids = {"agent_id": body["scopeId"], "participant_id": store.agents[body["scopeId"]].provider_id}
    token = store.add_token(name=body["name"], role=body["role"], lifetime_s=DAY_S, **owner_ids)
    token.expire_at = body.get("expireAt", token.expire_at)
    call.record_event("token.created", token)
    return Reply(status=201, body=views.token(token, with_value=True))


def _get_token(call: Call) -> Reply:
    return Reply(body=views.full_token(call.store, call.store.tokens[call.id]))


def _patch_token(call: Call) -> Reply:
    token = call.store.tokens[call.id]
    if call.body.get("name", token.name) == "":
        raise internal_error("token name cannot be empty")  # as in FulcrumCore: 500 here, 400 in `_create_token`
    json_before = json_for_events(token)
    token.name = call.body.get("name", token.name)
    token.expire_at = call.body.get("expireAt", token.expire_at)
    call.store.mark_updated(token)
    call.record_change("token.updated", json_before, token)
    return Reply(body=views.full_token(call.store, token))


def _regenerate_token(call: Call) -> Reply:
    """Give the token a new value, and return the token with this value."""
    token = call.store.tokens[call.id]
    call.store.regenerate_token(token)
    call.record_event("token.regenerate", token)
    return Reply(body=views.full_token(call.store, token, with_value=True))


def _delete_token(call: Call) -> Reply:
    token = call.store.tokens[call.id]
    call.store.delete_token(token)
    call.record_event("token.deleted", token)
    return NO_CONTENT


_TOKEN_FIELDS = {"name": "string", "role": "string", "scopeId": "uuid", "expireAt": "time"}

ENDPOINTS = [
    Endpoint(method="GET", path="/tokens", handler=_list_tokens, roles=ADMINS_AND_PARTICIPANTS),
    Endpoint(
        method="POST",
        path="/tokens",
        handler=_create_token,
        roles=ADMINS_AND_PARTICIPANTS,
        fields=_TOKEN_FIELDS,
        find_owners=_owners_of_new_token,
    ),
    Endpoint(
        method="GET",
        path="/tokens/{id}",
        handler=_get_token,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=_find_token_owners,
    ),
    Endpoint(
        method="PATCH",
        path="/tokens/{id}",
        handler=_patch_token,
        roles=ADMINS_AND_PARTICIPANTS,
        fields={"name": "string", "expireAt": "time"},
        find_owners=_find_token_owners,
    ),
    Endpoint(
        method="DELETE",
        path="/tokens/{id}",
        handler=_delete_token,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=_find_token_owners,
    ),
    Endpoint(
        method="POST",
        path="/tokens/{id}/regenerate",
        handler=_regenerate_token,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=_find_token_owners,
    ),
]
