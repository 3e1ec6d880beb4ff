"""Handles API calls that manage service types, and checks the schemas of a service type as FulcrumCore does.

The property schema describes the properties of a service, with constraints such as a maximum value. The lifecycle
schema describes the states and actions of a service.
"""

from __future__ import annotations

from smith_lab.simulator import lifecycle, schema_check, views
from smith_lab.simulator.definitions import lifecycle_as_stored, schema_as_stored
from smith_lab.simulator.entities import json_for_events
from smith_lab.simulator.paging import Listing, contains, sort_by
from smith_lab.simulator.problems import bad_request
from smith_lab.simulator.row_checks import find_row_or_404, refuse_duplicate, refuse_if_in_use
from smith_lab.simulator.rows import ServiceType
from smith_lab.simulator.store import Store
from smith_lab.simulator.web import ADMINS, ANY_ROLE, NO_CONTENT, Call, Endpoint, Reply

_LISTING = Listing(filters={"name": contains("name")}, sort_keys={"name": sort_by("name")})


def _list_service_types(call: Call) -> Reply:
    return _LISTING.reply(call, call.store.service_types.values(), views.service_type)


def _get_service_type(call: Call) -> Reply:
    return Reply(body=views.service_type(find_row_or_404(call.store.service_types, call)))


def _create_service_type(call: Call) -> Reply:
    body = call.body
    row = ServiceType(
        **call.store.new_row_fields(),
        name=body.get("name", ""),
        property_schema=body.get("propertySchema", {}),
        lifecycle_schema=body.get("lifecycleSchema", {}),
    )
    _save_service_type(call.store, row)
    call.record_event("service_type.created", row)
    return Reply(status=201, body=views.service_type(row))


def _patch_service_type(call: Call) -> Reply:
    row, body = find_row_or_404(call.store.service_types, call), call.body
    changed_row = ServiceType(
        **{
            **vars(row),
            "name": body.get("name", row.name),
            "property_schema": body.get("propertySchema", row.property_schema),
            "lifecycle_schema": body.get("lifecycleSchema", row.lifecycle_schema),
        }
    )
    _save_service_type(call.store, changed_row)
    call.store.mark_updated(changed_row)
    call.record_change("service_type.updated", json_for_events(row), changed_row)
    return Reply(body=views.service_type(changed_row))


def _save_service_type(store: Store, row: ServiceType) -> None:
    """Check and store a service type. Raises a 400 if it is invalid."""
    if not row.name:
        raise bad_request("service type name cannot be empty")
    schema_check.check(row.property_schema, schema_check.CONSTRAINTS_ALLOWED_IN_SERVICE_TYPES)
    lifecycle.check(row.lifecycle_schema)
    refuse_duplicate(store.service_types, row, member="name")
    # As in FulcrumCore, unknown members are not stored, and some omitted members get a default value such as `false`.
    row.property_schema = schema_as_stored(row.property_schema)
    row.lifecycle_schema = lifecycle_as_stored(row.lifecycle_schema)
    store.service_types[row.id] = row


def _delete_service_type(call: Call) -> Reply:
    """Delete a service type. Raises a 500 if there are services of this type."""
    row = find_row_or_404(call.store.service_types, call)
    refuse_if_in_use(any(service.service_type_id == row.id for service in call.store.services.values()))
    del call.store.service_types[row.id]
    call.record_event("service_type.deleted", row)
    return NO_CONTENT


_SERVICE_TYPE_BODY_FIELDS = {"name": "string", "propertySchema": "object", "lifecycleSchema": "object"}

ENDPOINTS = [
    Endpoint(method="GET", path="/service-types", handler=_list_service_types, roles=ANY_ROLE),
    Endpoint(
        method="POST",
        path="/service-types",
        handler=_create_service_type,
        roles=ADMINS,
        fields=_SERVICE_TYPE_BODY_FIELDS,
    ),
    Endpoint(method="GET", path="/service-types/{id}", handler=_get_service_type, roles=ANY_ROLE),
    Endpoint(
        method="PATCH",
        path="/service-types/{id}",
        handler=_patch_service_type,
        roles=ADMINS,
        fields=_SERVICE_TYPE_BODY_FIELDS,
    ),
    Endpoint(method="DELETE", path="/service-types/{id}", handler=_delete_service_type, roles=ADMINS),
]
