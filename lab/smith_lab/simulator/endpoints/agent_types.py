"""Handles calls that manage agent types, and checks the schema and the templates of an agent type as FulcrumCore does.

An agent type has two install templates: `configTemplate` for the configuration file of an agent, and `cmdTemplate` for
the shell command that installs an agent.

A view is the JSON of a row in an answer. The type `Json` is a JSON object, as a dict.
"""

from __future__ import annotations

import re
from typing import Any

from smith_lab.simulator import go_template, schema_check, views
from smith_lab.simulator.definitions import EMPTY_LIFECYCLE, EMPTY_SCHEMA, schema_as_stored
from smith_lab.simulator.entities import json_for_events
from smith_lab.simulator.go_template_parser import TemplateError
from smith_lab.simulator.paging import Listing, contains, sort_by
from smith_lab.simulator.problems import bad_request
from smith_lab.simulator.row_checks import find_row_or_404, refuse_duplicate, refuse_if_in_use
from smith_lab.simulator.rows import AgentType, Json, ServiceType
from smith_lab.simulator.store import Store
from smith_lab.simulator.web import ADMINS, ANY_ROLE, NO_CONTENT, Call, Endpoint, Reply

_LISTING = Listing(filters={"name": contains("name")}, sort_keys={"name": sort_by("name")})
#: Matches a media type with optional parameters, such as `text/plain; charset=utf-8`. As in Go, `text` alone is valid.
_MEDIA_TYPE = re.compile(r"[\w.+-]+(/[\w.+-]+)?\s*(;\s*[\w-]+=\S+\s*)*")


def _list_agent_types(call: Call) -> Reply:
    return _LISTING.reply(call, call.store.agent_types.values(), views.agent_type)


def _get_agent_type(call: Call) -> Reply:
    return Reply(body=views.agent_type(find_row_or_404(call.store.agent_types, call)))


def _create_agent_type(call: Call) -> Reply:
    body = call.body
    row = AgentType(
        **call.store.new_row_fields(),
        name=body.get("name", ""),
        service_type_ids=body.get("serviceTypeIds", []),
        configuration_schema=body.get("configurationSchema", {}),
        config_template=body.get("configTemplate", ""),
        cmd_template=body.get("cmdTemplate", ""),
        config_content_type=body.get("configContentType") or "text/plain",
    )
    _save_agent_type(call.store, row)
    call.record_event("agent_type.created", row)
    return Reply(status=201, body=_make_answer_then_remove_repeated_ids(row))


def _patch_agent_type(call: Call) -> Reply:
    row, body = find_row_or_404(call.store.agent_types, call), call.body
    changed_row = AgentType(
        **{
            **vars(row),
            "name": body.get("name", row.name),
            "service_type_ids": body.get("serviceTypeIds", row.service_type_ids),
            "configuration_schema": body.get("configurationSchema", row.configuration_schema),
            "config_template": body.get("configTemplate", row.config_template),
            "cmd_template": body.get("cmdTemplate", row.cmd_template),
            "config_content_type": body.get("configContentType", row.config_content_type) or "text/plain",
        }
    )
    _save_agent_type(call.store, changed_row)
    call.store.mark_updated(changed_row)
    # `json_for_events` returns the row as FulcrumCore's JSON. The event contains the difference between old and new
    # JSON.
    call.record_change("agent_type.updated", json_for_events(row), changed_row)
    return Reply(body=_make_answer_then_remove_repeated_ids(changed_row))


def _make_answer_then_remove_repeated_ids(row: AgentType) -> Json:
    """Make the answer to a request that created or changed the agent type, then remove repeated service type ids.

    FulcrumCore stores each service type id once, but its answer repeats an id that the request repeats.
    """
    body = views.agent_type(row)
    row.service_type_ids = list(dict.fromkeys(row.service_type_ids))
    return body


def _save_agent_type(store: Store, row: AgentType) -> None:
    """Check and store an agent type. Raises a 400 if it is invalid."""
    if not row.name:
        raise bad_request("agent type name cannot be empty")
    # A constraint, such as `maxLength`, limits the values of properties.
    schema_check.check(row.configuration_schema, schema_check.CONSTRAINTS_ALLOWED_IN_AGENT_TYPES)
    _check_templates(row)
    _check_content_type(row.config_content_type)
    refuse_duplicate(store.agent_types, row)
    # FulcrumCore drops unknown members of the schema, and adds some members that are missing.
    row.configuration_schema = schema_as_stored(row.configuration_schema)
    for service_type_id in row.service_type_ids:
        # FulcrumCore does not refuse an unknown id. It creates an empty service type with this id.
        if service_type_id not in store.service_types:
            row_fields = {**store.new_row_fields(), "id": service_type_id}
            empty_type = ServiceType(
                **row_fields, name="", property_schema=EMPTY_SCHEMA, lifecycle_schema=EMPTY_LIFECYCLE
            )
            store.service_types[service_type_id] = empty_type
    store.agent_types[row.id] = row


def _check_templates(row: AgentType) -> None:
    """Raise a 400 for install templates that FulcrumCore refuses.

    FulcrumCore accepts two empty templates. Otherwise both must be set, and it must be possible to render both. The
    command's template must use the URL of the configuration (`configUrl`) and a bearer token (`authToken`).
    """
    if bool(row.config_template) != bool(row.cmd_template):
        raise bad_request("configTemplate and cmdTemplate must both be set or both be empty")
    if not row.config_template:
        return
    data = _sample_data(row.configuration_schema)
    command_values = {"configUrl": "", "authToken": ""}
    _refuse_if_not_renderable(row.config_template, data)
    _refuse_if_not_renderable(row.cmd_template, data | command_values)
    for name in command_values:
        # If the template can be rendered without this value, it does not use the value.
        other_values = {key: value for key, value in command_values.items() if key != name}
        if _can_render(row.cmd_template, data | other_values):
            raise bad_request(f"cmdTemplate must reference {{{{.{name}}}}} when configTemplate is set")


def _refuse_if_not_renderable(template: str, data: Json) -> None:
    """Raise a 400 if the template cannot be rendered with this data."""
    try:
        go_template.render(template, data)
    except TemplateError as exc:
        raise bad_request(str(exc)) from exc


def _can_render(template: str, data: Json) -> bool:
    """Return whether the template can be rendered with this data."""
    try:
        go_template.render(template, data)
    except TemplateError:
        return False
    return True


def _sample_data(schema: Json) -> Json:
    """Return data for the check of a template. It contains a value of the declared type for every property."""
    return {name: _sample_value(definition) for name, definition in (schema.get("properties") or {}).items()}


def _sample_value(definition: Json) -> Any:
    property_type = definition["type"]
    if property_type == "object":
        return _sample_data(definition)
    if property_type == "array":
        return [_sample_value(definition["items"])] if definition.get("items") else []
    return {"integer": 0, "number": 0, "boolean": False}.get(property_type, "")


def _check_content_type(text: str) -> None:
    if not _MEDIA_TYPE.fullmatch(text):
        raise bad_request(f"configContentType {text!r} is not a valid media type")


def _delete_agent_type(call: Call) -> Reply:
    row = find_row_or_404(call.store.agent_types, call)
    refuse_if_in_use(any(agent.agent_type_id == row.id for agent in call.store.agents.values()))
    del call.store.agent_types[row.id]
    call.record_event("agent_type.deleted", row)
    return NO_CONTENT


_AGENT_TYPE_FIELDS = {
    "name": "string",
    "serviceTypeIds": "uuids",
    "configurationSchema": "object",
    "configTemplate": "string",
    "cmdTemplate": "string",
    "configContentType": "string",
}

ENDPOINTS = [
    Endpoint(method="GET", path="/agent-types", handler=_list_agent_types, roles=ANY_ROLE),
    Endpoint(method="POST", path="/agent-types", handler=_create_agent_type, roles=ADMINS, fields=_AGENT_TYPE_FIELDS),
    Endpoint(method="GET", path="/agent-types/{id}", handler=_get_agent_type, roles=ANY_ROLE),
    Endpoint(
        method="PATCH", path="/agent-types/{id}", handler=_patch_agent_type, roles=ADMINS, fields=_AGENT_TYPE_FIELDS
    ),
    Endpoint(method="DELETE", path="/agent-types/{id}", handler=_delete_agent_type, roles=ADMINS),
]
