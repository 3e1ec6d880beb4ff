"""Handles the API calls that manage metric types, and the calls that create and list metric entries.

A metric type is a measured quantity, such as CPU use. A metric entry is one value that an agent sent.
`resourceId` is a name that the agent gives to the measured resource, such as `cpu`. `agentInstanceId` is the id that
the agent reported for the VM of a service.

A view is the JSON of a row in an answer. A `full_` view also contains objects to which the row refers.
"""

from __future__ import annotations

from smith_lab.simulator import views
from smith_lab.simulator.entities import json_for_events
from smith_lab.simulator.paging import Listing, contains, equals_uuid, sort_by
from smith_lab.simulator.problems import bad_request, internal_error, not_found
from smith_lab.simulator.row_checks import find_row_or_404, refuse_duplicate, require_name
from smith_lab.simulator.rows import MetricEntry, MetricType, Service
from smith_lab.simulator.web import (
    ADMINS,
    ADMINS_AND_PARTICIPANTS,
    AGENTS,
    ANY_ROLE,
    NO_CONTENT,
    Call,
    Endpoint,
    Owners,
    Reply,
)

#: The values of `entityType`: the kinds of things that a metric type measures.
METRIC_ENTITY_TYPES = ("Agent", "Service", "Resource")
_TYPE_LISTING = Listing(
    filters={"name": contains("name")}, sort_keys={"name": sort_by("name"), "createdAt": sort_by("created_at")}
)
ENTRY_LISTING = Listing(
    filters={
        "serviceId": equals_uuid("service_id"),
        "agentId": equals_uuid("agent_id"),
        "typeId": equals_uuid("type_id"),
        "resourceId": contains("resource_id"),
    },
    sort_keys={"createdAt": sort_by("created_at"), "value": sort_by("value")},
)


def _list_metric_types(call: Call) -> Reply:
    return _TYPE_LISTING.reply(call, call.store.metric_types.values(), views.metric_type)


def _get_metric_type(call: Call) -> Reply:
    return Reply(body=views.metric_type(find_row_or_404(call.store.metric_types, call)))


def _create_metric_type(call: Call) -> Reply:
    entity_type = call.body.get("entityType", "")
    if entity_type not in METRIC_ENTITY_TYPES:
        # FulcrumCore's text
        raise bad_request(f"invalid {entity_type} metric entity type")
    row = MetricType(**call.store.new_row_fields(), name=require_name(call.body), entity_type=entity_type)
    refuse_duplicate(call.store.metric_types, row, member="name")  # refuses if another metric type has the same name
    call.store.metric_types[row.id] = row
    call.record_event("metric_type.created", row)
    return Reply(status=201, body=views.metric_type(row))


def _patch_metric_type(call: Call) -> Reply:
    row = find_row_or_404(call.store.metric_types, call)
    changed_row = MetricType(**{**vars(row), "name": require_name({"name": row.name, **call.body})})
    refuse_duplicate(call.store.metric_types, changed_row, member="name")
    call.store.metric_types[row.id] = changed_row
    call.store.mark_updated(changed_row)
    # `json_for_events(row)` is the JSON of the metric type before the change.
    call.record_change("metric_type.updated", json_for_events(row), changed_row)
    return Reply(body=views.metric_type(changed_row))


def _delete_metric_type(call: Call) -> Reply:
    row = find_row_or_404(call.store.metric_types, call)
    if any(entry.type_id == row.id for entry in call.store.metric_entries):
        raise internal_error("cannot delete metric-type with associated entries")
    del call.store.metric_types[row.id]
    call.record_event("metric_type.deleted", row)
    return NO_CONTENT


def _create_entry(call: Call) -> Reply:
    """Store one entry with the server's time. As in FulcrumCore, `timestamp` in the request is ignored."""
    service = _find_measured_service(call)
    type_name = call.body.get("typeName", "")
    metric_type = next((row for row in call.store.metric_types.values() if row.name == type_name), None)
    if metric_type is None:
        raise not_found()
    if not call.body.get("resourceId"):
        raise bad_request("resource ID cannot be empty")
    entry = MetricEntry(
        **call.store.new_row_fields(),
        provider_id=service.provider_id,
        consumer_id=service.consumer_id,
        agent_id=service.agent_id,
        service_id=service.id,
        resource_id=call.body["resourceId"],
        type_id=metric_type.id,
        type_name=metric_type.name,
        value=call.body.get("value", 0),
    )
    call.store.metric_entries.append(entry)
    return Reply(status=201, body=views.metric_entry(entry))


def _find_measured_service(call: Call) -> Service:
    """Return the service to which the new entry belongs. The request names it by `serviceId` or `agentInstanceId`.

    If both are present, `agentInstanceId` is ignored. As in FulcrumCore, `serviceId` may name a service of another
    agent, but `agentInstanceId` may not.
    """
    store = call.store
    if "serviceId" in call.body:
        service = store.services.get(call.body["serviceId"])
    elif "agentInstanceId" in call.body:
        service = store.services.get(store.service_id_by_agent_instance_id.get(call.body["agentInstanceId"], ""))
        if service is not None and service.agent_id != call.caller_token.agent_id:
            service = None
    else:
        raise bad_request("serviceId or agentInstanceId is required")
    if service is None:
        raise not_found()
    return service


def may_access_entry(call: Call, entry: MetricEntry) -> bool:
    """Return whether the caller is an admin, or the provider or the consumer of the entry's service."""
    return call.may_access(Owners(participant_ids=(entry.provider_id, entry.consumer_id)))


def _list_entries(call: Call) -> Reply:
    rows = (entry for entry in call.store.metric_entries if may_access_entry(call, entry))
    return ENTRY_LISTING.reply(call, rows, lambda entry: views.full_metric_entry(call.store, entry))


_METRIC_TYPE_BODY_FIELDS = {"name": "string", "entityType": "string"}
#: The simulator checks the types of all members. `_create_entry` ignores the values of `timestamp`, `metricTypeId`,
#: `entityType` and `entityId`.
_ENTRY_BODY_FIELDS = {
    "serviceId": "uuid",
    "agentInstanceId": "string",
    "resourceId": "string",
    "typeName": "string",
    "value": "number",
    "timestamp": "time",
    "metricTypeId": "uuid",
    "entityType": "string",
    "entityId": "uuid",
}

ENDPOINTS = [
    Endpoint(method="GET", path="/metric-types", handler=_list_metric_types, roles=ANY_ROLE),
    Endpoint(
        method="POST", path="/metric-types", handler=_create_metric_type, roles=ADMINS, fields=_METRIC_TYPE_BODY_FIELDS
    ),
    Endpoint(method="GET", path="/metric-types/{id}", handler=_get_metric_type, roles=ANY_ROLE),
    Endpoint(
        method="PATCH", path="/metric-types/{id}", handler=_patch_metric_type, roles=ADMINS, fields={"name": "string"}
    ),
    Endpoint(method="DELETE", path="/metric-types/{id}", handler=_delete_metric_type, roles=ADMINS),
    Endpoint(method="GET", path="/metric-entries", handler=_list_entries, roles=ADMINS_AND_PARTICIPANTS),
    Endpoint(method="POST", path="/metric-entries", handler=_create_entry, roles=AGENTS, fields=_ENTRY_BODY_FIELDS),
]
