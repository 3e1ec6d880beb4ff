"""Handles API calls that manage service option types and service options.

An option is one value that a provider offers, such as the image debian-12. Each option has an option type, such as the
one for images. The identifier of an option type is called `type`. The schema of a service's properties refers to the
option type by this identifier. Admins, providers and agents create options. The owner of an option is its provider: a
participant of FulcrumCore. Only the owner, its agents and admins may access an option.

Each function of `views` returns one row as FulcrumCore's JSON.
"""

from __future__ import annotations

import re

from smith_lab.simulator import views
from smith_lab.simulator.entities import json_for_events
from smith_lab.simulator.paging import Listing, contains, equals, equals_bool, equals_uuid, sort_by
from smith_lab.simulator.problems import bad_request, not_found
from smith_lab.simulator.row_checks import find_row_or_404, refuse_duplicate, refuse_if_in_use, require_name
from smith_lab.simulator.rows import Option, OptionType
from smith_lab.simulator.web import ADMINS, ANY_ROLE, NO_CONTENT, Call, Endpoint, Owners, Reply

_OPTION_LISTING = Listing(
    filters={
        "name": contains("name"),
        "providerId": equals_uuid("provider_id"),
        "serviceOptionTypeId": equals_uuid("service_option_type_id"),
        "enabled": equals_bool("enabled"),
    },
    sort_keys={"name": sort_by("name"), "displayOrder": sort_by("display_order")},
)
_TYPE_LISTING = Listing(
    filters={"name": contains("name"), "type": equals("type")},
    sort_keys={"name": sort_by("name"), "type": sort_by("type"), "createdAt": sort_by("created_at")},
)


def _list_option_types(call: Call) -> Reply:
    return _TYPE_LISTING.reply(call, call.store.option_types.values(), views.option_type)


def _get_option_type(call: Call) -> Reply:
    return Reply(body=views.option_type(find_row_or_404(call.store.option_types, call)))


def _create_option_type(call: Call) -> Reply:
    type_identifier = call.body.get("type", "")
    if not re.fullmatch(r"[A-Za-z0-9_]+", type_identifier):
        raise bad_request("`type` of a service option type must contain only letters, digits and _")
    row = OptionType(
        **call.store.new_row_fields(),
        name=require_name(call.body),
        type=type_identifier,
        description=call.body.get("description", ""),
    )
    refuse_duplicate(call.store.option_types, row, member="type")  # `type` must be unique
    call.store.option_types[row.id] = row
    call.record_event("service_option_type.created", row)
    return Reply(status=201, body=views.option_type(row))


def _patch_option_type(call: Call) -> Reply:
    row = find_row_or_404(call.store.option_types, call)
    json_before = json_for_events(row)
    row.name = require_name({"name": row.name, **call.body})
    row.description = call.body.get("description", row.description)
    call.store.mark_updated(row)
    call.record_change("service_option_type.updated", json_before, row)
    return Reply(body=views.option_type(row))


def _delete_option_type(call: Call) -> Reply:
    """Delete an option type. As in FulcrumCore, raises a 500 if there are options of this type."""
    row = find_row_or_404(call.store.option_types, call)
    refuse_if_in_use(any(option.service_option_type_id == row.id for option in call.store.service_options.values()))
    del call.store.option_types[row.id]
    call.record_event("service_option_type.deleted", row)
    return NO_CONTENT


def _find_option_owners(call: Call) -> Owners | None:
    """Return the owner of the option in the path; None if the option does not exist: the call is then answered 403."""
    option = call.store.service_options.get(call.id)
    return Owners(participant_ids=(option.provider_id,)) if option else None


def _owners_of_new_option(call: Call) -> Owners:
    """Return the owner of the new option: the provider in the request."""
    return Owners(participant_ids=(call.body.get("providerId"),))


def _list_options(call: Call) -> Reply:
    options = call.store.service_options.values()
    rows = (row for row in options if call.may_access(Owners(participant_ids=(row.provider_id,))))
    return _OPTION_LISTING.reply(call, rows, views.option)


def _get_option(call: Call) -> Reply:
    return Reply(body=views.option(call.store.service_options[call.id]))


def _create_option(call: Call) -> Reply:
    store, body = call.store, call.body
    if body.get("providerId") not in store.participants:
        raise bad_request("participant does not exist")
    if body.get("serviceOptionTypeId") not in store.option_types:
        raise not_found()
    if body.get("value") is None:
        raise bad_request("service option value cannot be empty")
    row = Option(
        **store.new_row_fields(),
        provider_id=body["providerId"],
        service_option_type_id=body["serviceOptionTypeId"],
        name=require_name(body),
        value=body.get("value"),
        enabled=body.get("enabled", True),
        display_order=body.get("displayOrder", 0),
    )
    store.service_options[row.id] = row
    call.record_event("service_option.created", row)
    return Reply(status=201, body=views.option(row))


def _patch_option(call: Call) -> Reply:
    row, body = call.store.service_options[call.id], call.body
    json_before = json_for_events(row)
    row.name = require_name({"name": row.name, **body})
    row.value = body.get("value", row.value)
    row.enabled = body.get("enabled", row.enabled)
    row.display_order = body.get("displayOrder", row.display_order)
    call.store.mark_updated(row)
    call.record_change("service_option.updated", json_before, row)
    return Reply(body=views.option(row))


def _delete_option(call: Call) -> Reply:
    call.record_event("service_option.deleted", call.store.service_options.pop(call.id))
    return NO_CONTENT


_OPTION_TYPE_BODY_FIELDS = {"name": "string", "type": "string", "description": "string"}
_OPTION_BODY_FIELDS = {
    "providerId": "uuid",
    "serviceOptionTypeId": "uuid",
    "name": "string",
    "value": "any",
    "enabled": "boolean",
    "displayOrder": "integer",
}

ENDPOINTS = [
    Endpoint(method="GET", path="/service-option-types", handler=_list_option_types, roles=ANY_ROLE),
    Endpoint(
        method="POST",
        path="/service-option-types",
        handler=_create_option_type,
        roles=ADMINS,
        fields=_OPTION_TYPE_BODY_FIELDS,
    ),
    Endpoint(method="GET", path="/service-option-types/{id}", handler=_get_option_type, roles=ANY_ROLE),
    Endpoint(
        method="PATCH",
        path="/service-option-types/{id}",
        handler=_patch_option_type,
        roles=ADMINS,
        fields={"name": "string", "description": "string"},
    ),
    Endpoint(method="DELETE", path="/service-option-types/{id}", handler=_delete_option_type, roles=ADMINS),
    Endpoint(method="GET", path="/service-options", handler=_list_options, roles=ANY_ROLE),
    Endpoint(
        method="POST",
        path="/service-options",
        handler=_create_option,
        roles=ANY_ROLE,
        fields=_OPTION_BODY_FIELDS,
        find_owners=_owners_of_new_option,
    ),
    Endpoint(
        method="GET", path="/service-options/{id}", handler=_get_option, roles=ANY_ROLE, find_owners=_find_option_owners
    ),
    Endpoint(
        method="PATCH",
        path="/service-options/{id}",
        handler=_patch_option,
        roles=ANY_ROLE,
        fields=_OPTION_BODY_FIELDS,
        find_owners=_find_option_owners,
    ),
    Endpoint(
        method="DELETE",
        path="/service-options/{id}",
        handler=_delete_option,
        roles=ANY_ROLE,
        find_owners=_find_option_owners,
    ),
]
