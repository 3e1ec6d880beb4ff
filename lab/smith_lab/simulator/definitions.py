"""Brings the schemas of service types and agent types into the form in which FulcrumCore stores them.

FulcrumCore decodes a schema into Go structs. So members that it does not know are lost, and some members that the
request omitted are returned with the zero value of their Go type, such as `false`.
"""

from __future__ import annotations

from typing import Any

from smith_lab.simulator.rows import Json


def stored_schema(schema: Json) -> Json:
    """Return a property schema or configuration schema, which `schema_check` accepted, as FulcrumCore returns it."""
    return {
        "properties": _stored_definitions(schema.get("properties") or {}),
        "validators": _stored_entries(schema.get("validators")),
    }


def _stored_definitions(definitions: Json) -> Json:
    return {name: _stored_definition(definition) for name, definition in definitions.items()}


def _stored_definition(definition: Json) -> Json:
    stored: Json = {
        "type": definition["type"],
        "label": definition.get("label") or "",
        "required": bool(definition.get("required")),
        "immutable": bool(definition.get("immutable")),
    }
    members: Json = {
        "authorizers": _stored_entries(definition.get("authorizers")) or None,
        "default": definition.get("default"),
        "secret": definition.get("secret") and {"type": definition["secret"]["type"]},
        "generator": definition.get("generator") and _stored_entry(definition["generator"]),
        "validators": _stored_entries(definition.get("validators")) or None,
        "properties": _stored_definitions(definition.get("properties") or {}) or None,
        "items": definition.get("items") and _stored_definition(definition["items"]),
    }
    return stored | {name: value for name, value in members.items() if value is not None}


def _stored_entries(entries: list[Json] | None) -> list[Json] | None:
    return None if entries is None else [_stored_entry(entry) for entry in entries]


def _stored_entry(entry: Json) -> Json:
    """Return a validator, authorizer or generator as FulcrumCore stores it."""
    return {"type": entry.get("type"), "config": entry.get("config")}


def stored_lifecycle(schema: Json) -> Json:
    """Return a lifecycle schema, which `lifecycle` accepted, as FulcrumCore returns it."""
    stored: Json = {
        "states": [{"name": state["name"]} for state in schema["states"]],
        "actions": [_stored_action(action) for action in schema["actions"]],
        "initialState": schema["initialState"],
        "terminalStates": schema.get("terminalStates"),
    }
    return stored | ({"runningStates": schema["runningStates"]} if schema.get("runningStates") else {})


def _stored_action(action: Json) -> Json:
    stored: Json = {"name": action["name"]}
    if action.get("requestSchemaType"):
        stored["requestSchemaType"] = action["requestSchemaType"]
    return stored | {"transitions": [_stored_transition(transition) for transition in action["transitions"]]}


def _stored_transition(transition: Json) -> Json:
    stored: dict[str, Any] = {"from": transition["from"], "to": transition["to"]}
    optional = {name: transition[name] for name in ("onError", "onErrorRegexp") if transition.get(name)}
    return stored | optional


#: The schemas of the empty service type that FulcrumCore creates for an unknown id in `serviceTypeIds`.
EMPTY_SCHEMA: Json = {"properties": None, "validators": None}
EMPTY_LIFECYCLE: Json = {"states": None, "actions": None, "initialState": "", "terminalStates": None}
