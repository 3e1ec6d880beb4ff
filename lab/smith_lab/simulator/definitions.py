"""Converts the schemas of service types and agent types to the form in which FulcrumCore stores and returns them.

FulcrumCore decodes a schema into Go structs. So unknown members are lost. Some members that the request omitted get the
zero value of their Go type, such as `false`.
"""

from __future__ import annotations

from typing import Any

from smith_lab.simulator.rows import Json


def stored_schema(schema: Json) -> Json:
    """Return a property schema or configuration schema as FulcrumCore stores it.

    The module `schema_check` must have accepted the schema.
    """
    return {
        "properties": _stored_definitions(schema.get("properties") or {}),
        "validators": _stored_rules(schema.get("validators")),
    }


def _stored_definitions(definitions: Json) -> Json:
    return {name: _stored_definition(definition) for name, definition in definitions.items()}


def _stored_definition(definition: Json) -> Json:
    stored_json: Json = {
        "type": definition["type"],
        "label": definition.get("label") or "",
        "required": bool(definition.get("required")),
        "immutable": bool(definition.get("immutable")),
    }
    members: Json = {
        "authorizers": _stored_rules(definition.get("authorizers")) or None,
        "default": definition.get("default"),
        "secret": definition.get("secret") and {"type": definition["secret"]["type"]},
        "generator": definition.get("generator") and _stored_rule(definition["generator"]),
        "validators": _stored_rules(definition.get("validators")) or None,
        "properties": _stored_definitions(definition.get("properties") or {}) or None,
        "items": definition.get("items") and _stored_definition(definition["items"]),
    }
    return stored_json | {name: value for name, value in members.items() if value is not None}


def _stored_rules(rules: list[Json] | None) -> list[Json] | None:
    return None if rules is None else [_stored_rule(rule) for rule in rules]


def _stored_rule(rule: Json) -> Json:
    """Return a rule (a validator, an authorizer or a generator) as FulcrumCore stores it."""
    return {"type": rule.get("type"), "config": rule.get("config")}


def stored_lifecycle(schema: Json) -> Json:
    """Return a lifecycle schema as FulcrumCore stores it. The module `lifecycle` must have accepted the schema."""
    stored_json: Json = {
        "states": [{"name": state["name"]} for state in schema["states"]],
        "actions": [_stored_action(action) for action in schema["actions"]],
        "initialState": schema["initialState"],
        "terminalStates": schema.get("terminalStates"),
    }
    return stored_json | ({"runningStates": schema["runningStates"]} if schema.get("runningStates") else {})


def _stored_action(action: Json) -> Json:
    stored_json: Json = {"name": action["name"]}
    if action.get("requestSchemaType"):
        stored_json["requestSchemaType"] = action["requestSchemaType"]
    return stored_json | {"transitions": [_stored_transition(transition) for transition in action["transitions"]]}


def _stored_transition(transition: Json) -> Json:
    stored_json: dict[str, Any] = {"from": transition["from"], "to": transition["to"]}
    optional_members = {name: transition[name] for name in ("onError", "onErrorRegexp") if transition.get(name)}
    return stored_json | optional_members


#: The schemas of the empty service type that FulcrumCore creates for an unknown id in an agent type's `serviceTypeIds`.
EMPTY_SCHEMA: Json = {"properties": None, "validators": None}
EMPTY_LIFECYCLE: Json = {"states": None, "actions": None, "initialState": "", "terminalStates": None}
