"""Handles API calls that manage services.

A job is created by each call that creates or deletes a service, changes its properties or requests an action. The
service's state (`status`) changes when the job ends. An active job is Pending or Processing.

FulcrumCore takes no lock when it checks a condition, such as that the service has no active job. So several requests
that arrive at the same time may all pass a check that only one of them should pass. Tests that need this
behaviour turn on the switch `simultaneous_requests_all_succeed`. If the switch is on, `call.service_at_request` and
`call.active_job_at_request` return the row as it was when the call arrived. If the switch is off, both return the
current row. `active_job_at_request` returns None if the service has no active job.

A view is the JSON of a row in an answer. A `full_` view also contains objects to which the row refers, here
the agent and the service type.
"""

from __future__ import annotations

from typing import Any

from smith_lab.simulator import lifecycle, pool_values, properties, views
from smith_lab.simulator.endpoints.jobs import owners_of_job_or_service
from smith_lab.simulator.entities import json_for_events
from smith_lab.simulator.lookups import ServiceLookups
from smith_lab.simulator.paging import Listing, contains, equals, sort_by
from smith_lab.simulator.pool_values import AllocationFailed
from smith_lab.simulator.problems import (
    PropertyErrors,
    bad_request,
    internal_error,
    not_found,
    panic_answer,
    validation_failed,
)
from smith_lab.simulator.rows import Agent, Json, Service, ServiceType
from smith_lab.simulator.store import Store
from smith_lab.simulator.validators import property_error
from smith_lab.simulator.web import ADMINS_AND_PARTICIPANTS, ANY_ROLE, NO_CONTENT, Call, Endpoint, Owners, Reply

#: The greatest length of an action's name that FulcrumCore's database accepts.
MAX_ACTION_NAME_CHARACTERS = 50

_LISTING = Listing(
    filters={"name": contains("name"), "currentStatus": equals("status")},
    sort_keys={"name": sort_by("name")},
)


def _find_service_owners(call: Call) -> Owners | None:
    """Return the provider, the consumer and the agent of the service. Only they and admins may access the service."""
    service = call.store.services.get(call.id)
    return owners_of_job_or_service(service) if service else None


def _owners_of_new_service(call: Call) -> Owners | None:
    """Return the owner of the group in which the service is created: the group's consumer."""
    group = call.store.groups.get(call.body.get("groupId", ""))
    return Owners(participant_ids=(group.consumer_id,)) if group else None


def _list_services(call: Call) -> Reply:
    rows = (service for service in call.store.services.values() if call.may_access(owners_of_job_or_service(service)))
    return _LISTING.reply(call, rows, lambda service: views.full_service(call.store, service))


def _get_service(call: Call) -> Reply:
    return Reply(body=views.full_service(call.store, call.store.services[call.id]))


def _create_service(call: Call) -> Reply:
    """Create a service in its initial state, and a `create` job whose params are the service's properties."""
    store = call.store
    agent = _select_agent(call)
    service_type = store.service_types.get(call.body.get("serviceTypeId", ""))
    if service_type is None:
        raise not_found()
    if service_type.id not in store.agent_types[agent.agent_type_id].service_type_ids:
        raise bad_request("agent type does not support the service type")
    if not call.body.get("name"):
        raise bad_request("service name cannot be empty")
    service = _new_service(call, agent, service_type)
    requested_properties = call.body.get("properties", {})
    service.properties = _process_properties(store, service, service_type, requested_properties, is_update=False)
    store.services[service.id] = service
    store.add_job(service, "create", service.properties)
    call.record_event("service.created", service)
    return Reply(status=201, body=views.service(service))


def _select_agent(call: Call) -> Agent:
    """Return the agent with the `agentId` in the request.

    Without `agentId`, return the first agent that supports the service type and has all `agentTags` of the request.
    """
    store = call.store
    if "agentId" in call.body:
        agent = store.agents.get(call.body["agentId"])
        if agent is None:
            raise bad_request(f"agent with ID {call.body['agentId']} does not exist")
        return agent
    required_tags = set(call.body.get("agentTags", []))
    for agent in store.agents.values():
        supported_type_ids = store.agent_types[agent.agent_type_id].service_type_ids
        if call.body.get("serviceTypeId") in supported_type_ids and required_tags <= set(agent.tags or []):
            return agent
    raise bad_request("no agent found for the service type and tags")


def _new_service(call: Call, agent: Agent, service_type: ServiceType) -> Service:
    group = call.store.groups[call.body["groupId"]]
    # `new_service_id` is None, or a function with which a test chooses the id of each new service.
    chosen_id = {"id": call.store.new_service_id()} if call.store.new_service_id else {}
    return Service(
        **call.store.new_row_fields() | chosen_id,
        provider_id=agent.provider_id,
        consumer_id=group.consumer_id,
        agent_id=agent.id,
        service_type_id=service_type.id,
        group_id=group.id,
        name=call.body["name"],
        status=service_type.lifecycle_schema["initialState"],
        properties=None,
    )


def _process_properties(
    store: Store, service: Service, service_type: ServiceType, requested_properties: Json, *, is_update: bool
) -> Json:
    """Return the properties to store in a new service, or the params of an `update` job.

    `properties.process` checks the properties in the request, and stores secrets in the vault (the simulator's store of
    secrets). For missing properties, it adds defaults, or values from a service pool, such as IP addresses. Raises a
    400 that lists all invalid properties.
    """
    context = properties.ChangeContext(
        vault=store.vault,
        actor="user",  # an admin or a participant (a provider or a consumer)
        is_update=is_update,
        # The schema may forbid that a property is changed in some states. For a new service, states are not checked.
        service_status=service.status if is_update else "",
        # Checks properties whose value must be a service's id, or a service option (a value that the provider offers).
        lookups=ServiceLookups(store, service),
        allocate_value=lambda pool_type, property_name: _allocate_value(store, service, pool_type, property_name),
    )
    pool_value_ids_before = {row.id for row in store.service_pool_values.values() if row.allocated_to_id == service.id}
    try:
        return properties.process(context, service_type.property_schema, service.properties, requested_properties)
    except PropertyErrors as exc:
        pool_values.release_values(store.service_pool_values, service.id, ids_to_keep=pool_value_ids_before)
        raise validation_failed(exc) from exc


def _allocate_value(store: Store, service: Service, pool_type: str, property_name: str) -> Any:
    """Allocate a value to a property of the service, from a pool with the type `pool_type` in the agent's pool set.

    Raises PropertyErrors.
    """
    pool_set_id = store.agents[service.agent_id].service_pool_set_id
    if pool_set_id is None:
        raise property_error(f"{property_name}: agent does not have a pool set configured")
    pools = [
        row for row in store.service_pools.values() if (row.service_pool_set_id, row.type) == (pool_set_id, pool_type)
    ]
    if not pools:
        raise property_error(f"{property_name}: no pool found with type {pool_type!r} in pool set")
    try:
        return pool_values.allocate_value(
            store.service_pool_values, pools[0], service.id, property_name, store.clock.now()
        )
    except AllocationFailed as exc:
        raise property_error(f"{property_name}: {exc}") from exc


def _patch_service(call: Call) -> Reply:
    """Change the name at once. For new properties, create an `update` job; its completion stores the properties."""
    store, service = call.store, call.store.services[call.id]
    service_type = store.service_types[service.service_type_id]
    if call.body.get("name", service.name) == "":
        raise bad_request("service name cannot be empty")
    if "properties" in call.body:
        service_at_request = call.service_at_request(service)
        if service_at_request.properties is None:
            # `_request_action` can create an `update` job without params. When that job completes, the
            # service loses its properties. Here FulcrumCore panics for such a service (nil pointer).
            raise panic_answer()
        params = _process_properties(store, service_at_request, service_type, call.body["properties"], is_update=True)
        _add_action_job(call, service, service_type, "update", params)
    if "name" in call.body:
        json_before = json_for_events(service)
        service.name = call.body["name"]
        store.mark_updated(service)
        call.record_change("service.updated", json_before, service)
    return Reply(body=views.full_service(store, service))


def _add_action_job(call: Call, service: Service, service_type: ServiceType, action: str, params: Json | None) -> None:
    """Create a job for the action.

    Raises a 400 if the service's state does not allow the action, or if the service has an active job. Raises a 500
    for an action whose name is longer than MAX_ACTION_NAME_CHARACTERS.
    """
    lifecycle.refuse_unless_allowed(service_type.lifecycle_schema, call.service_at_request(service).status, action)
    active_job = call.active_job_at_request(service)
    if active_job is not None:
        raise bad_request(f"cannot update service {service.id} while there is an active job {active_job.id}")
    if len(action) > MAX_ACTION_NAME_CHARACTERS:
        raise internal_error("value too long for type character varying(50) (SQLSTATE 22001)")
    call.store.add_job(service, action, params)


def _request_action(call: Call) -> Reply:
    """Create a job without params for the action that the path names. The request's body is ignored."""
    service = call.store.services[call.id]
    service_type = call.store.service_types[service.service_type_id]
    _add_action_job(call, service, service_type, call.path_params["action"], params=None)
    return Reply(body=views.full_service(call.store, service))


def _delete_service(call: Call) -> Reply:
    service = call.store.services[call.id]
    service_type = call.store.service_types[service.service_type_id]
    _add_action_job(call, service, service_type, "delete", params=None)
    return NO_CONTENT


_CREATE_BODY_FIELDS = {
    "groupId": "uuid",
    "agentId": "uuid",
    "serviceTypeId": "uuid",
    "agentTags": "strings",  # a list of strings
    "name": "string",
    "properties": "object",
}

ENDPOINTS = [
    Endpoint(method="GET", path="/services", handler=_list_services, roles=ANY_ROLE),
    Endpoint(
        method="POST",
        path="/services",
        handler=_create_service,
        roles=ADMINS_AND_PARTICIPANTS,
        fields=_CREATE_BODY_FIELDS,
        find_owners=_owners_of_new_service,
    ),
    Endpoint(
        method="GET", path="/services/{id}", handler=_get_service, roles=ANY_ROLE, find_owners=_find_service_owners
    ),
    Endpoint(
        method="PATCH",
        path="/services/{id}",
        handler=_patch_service,
        roles=ADMINS_AND_PARTICIPANTS,
        fields={"name": "string", "properties": "object"},
        find_owners=_find_service_owners,
    ),
    Endpoint(
        method="DELETE",
        path="/services/{id}",
        handler=_delete_service,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=_find_service_owners,
    ),
    Endpoint(
        method="POST",
        path="/services/{id}/{action}",
        handler=_request_action,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=_find_service_owners,
    ),
]
