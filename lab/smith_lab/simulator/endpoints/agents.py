"""Handles the API calls by which admins and participants manage agents, and the calls of an agent to /agents/me.

Participants are providers and consumers of services. An agent has a configuration, whose schema is defined by the
agent type. A property of the configuration may get its value from a config pool. An agent may also have a service pool
set: pools from which the properties of its services get values.

A view is the JSON of a row in an answer. A `full_` view also contains objects to which the row refers, here
the agent's provider and type.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from smith_lab.simulator import pool_values, properties, views
from smith_lab.simulator.endpoints.tokens import owners_of_agent
from smith_lab.simulator.entities import json_for_events
from smith_lab.simulator.paging import Listing, contains, equals_enum, equals_uuid, sort_by
from smith_lab.simulator.pool_values import AllocationFailed
from smith_lab.simulator.problems import PropertyErrors, bad_request, internal_error, not_found
from smith_lab.simulator.rows import Agent, Json
from smith_lab.simulator.store import Store
from smith_lab.simulator.validators import property_error
from smith_lab.simulator.web import ADMINS_AND_PARTICIPANTS, AGENTS, ANY_ROLE, NO_CONTENT, Call, Endpoint, Owners, Reply

#: The maximum length of a tag.
MAX_TAG_BYTES = 100
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


def find_agent_owners(call: Call) -> Owners | None:
    """Return the owners of the agent with the id in the call's path: the agent itself and its provider.

    Only owners and admins may access the agent. If there is no such agent, return None: the server then answers 403.
    """
    agent = call.store.agents.get(call.id)
    return owners_of_agent(agent) if agent else None


def _owners_of_new_agent(call: Call) -> Owners:
    """Return the owner of the new agent: the provider in the request."""
    return Owners(participant_ids=(call.body.get("providerId"),))


def _list_agents(call: Call) -> Reply:
    """List the agents that the caller may access. As in FulcrumCore, `agentType.serviceTypeIds` is empty in a list."""
    rows = (agent for agent in call.store.agents.values() if call.may_access(owners_of_agent(agent)))
    return _LISTING.reply(call, rows, lambda agent: views.listed_agent(call.store, agent))


def _get_agent(call: Call) -> Reply:
    return Reply(body=views.full_agent(call.store, call.store.agents[call.id]))


def _create_agent(call: Call) -> Reply:
    """Create an agent with the status Disconnected.

    Without `configuration` in the request, the agent has no configuration, even if the agent type's schema has required
    properties.
    """
    store, body = call.store, call.body
    if body.get("providerId") not in store.participants:
        raise bad_request("participant does not exist")
    if body.get("agentTypeId") not in store.agent_types:
        raise bad_request("agent type does not exist")
    pool_set_id = body.get("servicePoolSetId")
    if pool_set_id is not None and pool_set_id not in store.service_pool_sets:
        raise bad_request("service pool set does not exist")
    _refuse_pool_set_of_another_provider(store, pool_set_id, body["providerId"])
    new_row_fields = store.new_row_fields()
    agent = Agent(
        **new_row_fields,
        name=body["name"],
        status="Disconnected",
        provider_id=body["providerId"],
        agent_type_id=body["agentTypeId"],
        tags=body.get("tags"),
        configuration=None,
        service_pool_set_id=pool_set_id,
        last_status_at=new_row_fields["created_at"],
    )
    if "configuration" in body:
        agent.configuration = _configuration_to_store(store, agent, body["configuration"])
    _check_name_and_tags(agent)
    store.agents[agent.id] = agent
    call.record_event("agent.created", agent)
    return Reply(status=201, body=views.agent(agent))


def _check_name_and_tags(agent: Agent) -> None:
    if not agent.name:
        raise bad_request("agent name cannot be empty")
    if any(not tag or len(tag.encode()) > MAX_TAG_BYTES for tag in agent.tags or ()):
        raise bad_request(f"a tag must have 1 to {MAX_TAG_BYTES} bytes")


def _refuse_pool_set_of_another_provider(store: Store, pool_set_id: str | None, provider_id: str) -> None:
    if pool_set_id is not None and store.service_pool_sets[pool_set_id].provider_id != provider_id:
        raise bad_request("service pool set belongs to another provider")


def _configuration_to_store(store: Store, agent: Agent, requested_configuration: Json) -> Json:
    """Return the configuration to store.

    `properties.process` checks the configuration in the request, omits unknown properties, and adds defaults and
    values of config pools for missing properties. It stores each secret in the vault (the simulator's store of
    secrets), and puts a reference to the secret in its place. Raises a 400 if the configuration does not match the
    agent type's schema.
    """
    pool_value_ids_before = {row.id for row in store.config_pool_values.values() if row.allocated_to_id == agent.id}

    def allocate_value(pool_type: str, property_name: str) -> Any:
        """Allocate a value of a config pool to a property of the configuration. Raises PropertyErrors.

        A config pool with a `participant_id` serves only the agents of this provider. Without one, it serves the
        agents of all providers.
        """
        pools = (pool for pool in store.config_pools.values() if pool.type == pool_type)
        pool = next((pool for pool in pools if pool.participant_id in (None, agent.provider_id)), None)
        if pool is None:
            raise property_error(f"{property_name}: failed to find config pool with type {pool_type!r}")
        try:
            return pool_values.allocate_value(
                store.config_pool_values, pool, agent.id, property_name, store.clock.now()
            )
        except AllocationFailed as exc:
            raise property_error(f"{property_name}: {exc}") from exc

    is_update = agent.configuration is not None
    context = properties.ChangeContext(
        vault=store.vault,
        actor="user",  # an admin or a participant
        is_update=is_update,
        allocate_value=allocate_value,
    )
    schema = store.agent_types[agent.agent_type_id].configuration_schema
    try:
        return properties.process(context, schema, agent.configuration, requested_configuration)
    except PropertyErrors as exc:
        pool_values.release_values(store.config_pool_values, agent.id, ids_to_keep=pool_value_ids_before)
        raise bad_request(str(exc)) from exc


def _patch_agent(call: Call) -> Reply:
    store, agent, body = call.store, call.store.agents[call.id], call.body
    pool_set_id = body.get("servicePoolSetId", agent.service_pool_set_id)
    if "servicePoolSetId" in body and pool_set_id not in store.service_pool_sets:
        raise not_found()
    if "servicePoolSetId" in body:
        _refuse_pool_set_of_another_provider(store, pool_set_id, agent.provider_id)
    changed_agent = replace(
        agent,
        name=body.get("name", agent.name),
        status=body.get("status", agent.status),
        tags=body.get("tags", agent.tags),
        service_pool_set_id=pool_set_id,
    )
    if "configuration" in body:
        changed_agent.configuration = _configuration_to_store(store, agent, body["configuration"])
    _check_status(changed_agent.status)
    _check_name_and_tags(changed_agent)
    if "status" in body:
        changed_agent.last_status_at = store.clock.now()
    store.agents[agent.id] = changed_agent
    store.mark_updated(changed_agent)
    # `json_for_events(agent)` is the agent's JSON before the change.
    call.record_change("agent.updated", json_for_events(agent), changed_agent)
    return Reply(body=views.full_agent(store, changed_agent))


def _check_status(status: str) -> None:
    if status not in AGENT_STATUSES:
        raise bad_request(f"invalid agent status: {status}")


def _delete_agent(call: Call) -> Reply:
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


def _get_calling_agent(call: Call) -> Reply:
    return Reply(body=views.full_agent(call.store, _find_calling_agent(call)))


def _put_status_of_calling_agent(call: Call) -> Reply:
    """Handle a heartbeat. As in FulcrumCore, an agent may report any status at any time, even Disabled."""
    agent = _find_calling_agent(call)
    _check_status(call.body.get("status", ""))
    json_before = json_for_events(agent)
    agent.status = call.body["status"]
    agent.last_status_at = call.store.clock.now()
    call.store.mark_updated(agent)
    call.record_change("agent.updated", json_before, agent)
    return Reply(body=views.full_agent(call.store, agent))


#: Maps the members of a request's body to their types. `strings` is a list of strings.
_AGENT_BODY_FIELDS = {"name": "string", "tags": "strings", "configuration": "object", "servicePoolSetId": "uuid"}

ENDPOINTS = [
    Endpoint(method="GET", path="/agents", handler=_list_agents, roles=ANY_ROLE),
    Endpoint(
        method="POST",
        path="/agents",
        handler=_create_agent,
        roles=ADMINS_AND_PARTICIPANTS,
        fields={**_AGENT_BODY_FIELDS, "providerId": "uuid", "agentTypeId": "uuid"},
        find_owners=_owners_of_new_agent,
    ),
    Endpoint(method="GET", path="/agents/me", handler=_get_calling_agent, roles=AGENTS),
    Endpoint(
        method="PUT",
        path="/agents/me/status",
        handler=_put_status_of_calling_agent,
        roles=AGENTS,
        checks_role_before_body=True,  # as FulcrumCore does; for most other paths, it checks the body first
        fields={"status": "string"},
    ),
    Endpoint(method="GET", path="/agents/{id}", handler=_get_agent, roles=ANY_ROLE, find_owners=find_agent_owners),
    Endpoint(
        method="PATCH",
        path="/agents/{id}",
        handler=_patch_agent,
        roles=ADMINS_AND_PARTICIPANTS,
        fields={**_AGENT_BODY_FIELDS, "status": "string"},
        find_owners=find_agent_owners,
    ),
    Endpoint(
        method="DELETE",
        path="/agents/{id}",
        handler=_delete_agent,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=find_agent_owners,
    ),
]
