"""Handles the calls by which admins and participants manage agents, and the calls of an agent to /agents/me."""

from __future__ import annotations

from smith_lab.simulator import properties, views
from smith_lab.simulator.endpoints.tokens import scope_of_agent
from smith_lab.simulator.paging import Listing, contains, equals_enum, equals_uuid, sort_by
from smith_lab.simulator.problems import PropertyErrors, bad_request, internal_error, not_found
from smith_lab.simulator.rows import Agent, Json
from smith_lab.simulator.store import Store
from smith_lab.simulator.web import AGENTS, ANY_ROLE, NO_CONTENT, USERS, Call, Endpoint, Reply, Scope

AGENT_STATUSES = ("New", "Connected", "Disconnected", "Error", "Disabled")

_LISTING = Listing(
    filters={
        "name": contains("name"),
        "status": equals_enum("status", AGENT_STATUSES),
        "agentTypeId": equals_uuid("agent_type_id"),
        "providerId": equals_uuid("provider_id"),
    },
    sort_keys={"name": sort_by("name")},
)


def find_agent_scope(call: Call) -> Scope | None:
    """Return the scope of the agent with the id in the call's path, or None if there is no such agent."""
    agent = call.store.agents.get(call.id)
    return scope_of_agent(agent) if agent else None


def _new_agent_scope(call: Call) -> Scope:
    """Return the scope that the new agent will have."""
    return Scope(participant_ids=(call.body.get("providerId"),))


def _list(call: Call) -> Reply:
    rows = (agent for agent in call.store.agents.values() if call.may_access(scope_of_agent(agent)))
    return _LISTING.reply(call, rows, lambda agent: views.agent(call.store, agent))


def _get(call: Call) -> Reply:
    return Reply(body=views.agent(call.store, call.store.agents[call.id]))


def _create(call: Call) -> Reply:
    """Create an agent with the status Disconnected.

    If the request has no configuration, the agent has no configuration, even if the schema has required members.
    """
    store, body = call.store, call.body
    _refuse_pools(body)
    if not body.get("name"):
        raise bad_request("agent name cannot be empty")
    if body.get("providerId") not in store.participants:
        raise bad_request("participant does not exist")
    if body.get("agentTypeId") not in store.agent_types:
        raise bad_request("agent type does not exist")
    new_row_fields = store.new_row_fields()
    agent = Agent(
        **new_row_fields,
        name=body["name"],
        status="Disconnected",
        provider_id=body["providerId"],
        agent_type_id=body["agentTypeId"],
        tags=body.get("tags"),
        configuration=None,
        last_status_at=new_row_fields["created_at"],
    )
    if "configuration" in body:
        agent.configuration = _process_configuration(store, agent, body["configuration"])
    store.agents[agent.id] = agent
    call.record_event("agent.created", agent)
    return Reply(status=201, body=views.agent(store, agent))


def _process_configuration(store: Store, agent: Agent, requested: Json) -> Json:
    """Return the configuration to store, without unknown members and with vault references instead of secrets.

    `requested` is the configuration in the request. Raises a 400 if it does not match the agent type's schema.
    """
    context = properties.ChangeContext(vault=store.vault, actor="user", is_update=agent.configuration is not None)
    schema = store.agent_types[agent.agent_type_id].configuration_schema
    try:
        return properties.process(context, schema, agent.configuration, requested)
    except PropertyErrors as exc:
        raise bad_request(str(exc)) from exc


def _patch(call: Call) -> Reply:
    store, agent, body = call.store, call.store.agents[call.id], call.body
    _refuse_pools(body)
    if body.get("name", agent.name) == "":
        raise bad_request("agent name cannot be empty")
    _check_status(body.get("status", agent.status))
    if "configuration" in body:
        agent.configuration = _process_configuration(store, agent, body["configuration"])
    agent.name = body.get("name", agent.name)
    agent.status = body.get("status", agent.status)
    agent.tags = body.get("tags", agent.tags)
    store.mark_updated(agent)
    call.record_event("agent.updated", agent)
    return Reply(body=views.agent(store, agent))


def _refuse_pools(body: Json) -> None:
    if "servicePoolSetId" in body:
        raise bad_request("service pools are not simulated")


def _check_status(status: str) -> None:
    if status not in AGENT_STATUSES:
        raise bad_request(f"invalid agent status: {status}")


def _delete(call: Call) -> Reply:
    """Delete an agent and its tokens. Raises a 500 if the agent has services."""
    store = call.store
    if any(service.agent_id == call.id for service in store.services.values()):
        raise internal_error("cannot delete agent with associated services")
    agent = store.agents[call.id]
    store.delete_agent(agent)
    call.record_event("agent.deleted", agent)
    return NO_CONTENT


def _find_calling_agent(call: Call) -> Agent:
    """Return the agent that makes the call. Raises a 404 if the caller's token belongs to no agent in the store."""
    agent = call.store.agents.get(call.caller_token.agent_id or "")
    if agent is None:
        raise not_found()
    return agent


def _get_me(call: Call) -> Reply:
    return Reply(body=views.agent(call.store, _find_calling_agent(call)))


def _put_my_status(call: Call) -> Reply:
    """Handle a heartbeat. As in the real server, an agent may report any status at any time, even Disabled."""
    agent = _find_calling_agent(call)
    _check_status(call.body.get("status", ""))
    agent.status = call.body["status"]
    agent.last_status_at = call.store.clock.now()
    call.store.mark_updated(agent)
    call.record_event("agent.status_changed", agent, {"status": agent.status})
    return Reply(body=views.agent(call.store, agent))


_FIELDS = {"name": "string", "tags": "strings", "configuration": "object", "servicePoolSetId": "uuid"}

ENDPOINTS = [
    Endpoint(method="GET", path="/agents", handler=_list, roles=ANY_ROLE),
    Endpoint(
        method="POST",
        path="/agents",
        handler=_create,
        roles=USERS,
        fields={**_FIELDS, "providerId": "uuid", "agentTypeId": "uuid"},
        find_scope=_new_agent_scope,
    ),
    Endpoint(method="GET", path="/agents/me", handler=_get_me, roles=AGENTS),
    Endpoint(
        method="PUT",
        path="/agents/me/status",
        handler=_put_my_status,
        roles=AGENTS,
        checks_role_first=True,
        fields={"status": "string"},
    ),
    Endpoint(method="GET", path="/agents/{id}", handler=_get, roles=ANY_ROLE, find_scope=find_agent_scope),
    Endpoint(
        method="PATCH",
        path="/agents/{id}",
        handler=_patch,
        roles=USERS,
        fields={**_FIELDS, "status": "string"},
        find_scope=find_agent_scope,
    ),
    Endpoint(method="DELETE", path="/agents/{id}", handler=_delete, roles=USERS, find_scope=find_agent_scope),
]
