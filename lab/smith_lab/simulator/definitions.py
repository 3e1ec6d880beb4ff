"""Converts the schemas of service types and agent types to the form in which FulcrumCore stores and returns them.

FulcrumCore decodes a schema into Go structs. So unknown members are lost. Some members that the request omitted get the
zero value of their Go type, such as `false`.

A definition is the part of a schema that describes one property, or the items of a list. It has a type, a label and so
on. A definition can contain rules. A validator limits the values of the property. An authorizer limits who may set it,
or in which states of the service it may be set. A generator gives the property a value if the request sets no value.
FulcrumCore takes this value from one of its pools of values. If a definition has the member `secret`, FulcrumCore
stores the value of the property in its vault. A schema itself can have validators, which compare several properties.

The type `Json` is a JSON object, as a dict.
"""

from __future__ import annotations

from typing import Any

from smith_lab.simulator.rows import Json


def schema_as_stored(schema: Json) -> Json:
    """Return a schema as FulcrumCore stores it.

    It is the property schema of a service type or the configuration schema of an agent type. The caller must have
    checked it by `schema_check.check`.
    """
    return {
        "properties": _stored_definitions(schema.get("properties") or {}),
        "validators": _stored_rules(schema.get("validators")),
    }


def _stored_definitions(definitions: Json) -> Json:
    return {name: _stored_definition(definition) for name, definition in definitions.items()}


def _stored_definition(definition: Json) -> Json:
    always_stored: Json = {
        "type": definition["type"],
        "label": definition.get("label") or "",
        "required": bool(definition.get("required")),
        "immutable": bool(definition.get("immutable")),
    }
    stored_if_set: Json = {
        "authorizers": _stored_rules(definition.get("authorizers")) or None,
        "default": definition.get("default"),
        "secret": definition.get("secret") and {"type": definition["secret"]["type"]},
        "generator": definition.get("generator") and _stored_rule(definition["generator"]),
        "validators": _stored_rules(definition.get("validators")) or None,
        "properties": _stored_definitions(definition.get("properties") or {}) or None,
        "items": definition.get("items") and _stored_definition(definition["items"]),
    }
    return always_stored | {name: value for name, value in stored_if_set.items() if value is not None}


def _stored_rules(rules: list[Json] | None) -> list[Json] | None:
    return None if rules is None else [_stored_rule(rule) for rule in rules]


def _stored_rule(rule: Json) -> Json:
    """Return a rule (a validator, an authorizer or a generator) as FulcrumCore stores it."""
    return {"type": rule.get("type"), "config": rule.get("config")}


def lifecycle_as_stored(schema: Json) -> Json:
    """Return a lifecycle schema as FulcrumCore stores it. The caller must have checked it by `lifecycle.check`.

    A lifecycle schema contains the states of a service and the actions that change the state.
    """
    stored_json: Json = {
        "states": [{"name": state["name"]} for state in schema["states"]],
        "actions": [_stored_action(action) for action in schema["actions"]],
        "initialState": schema["initialState"],
        "terminalStates": schema.get("terminalStates"),
    }
    return stored_json | ({"runningStates": schema["runningStates"]} if schema.get("runningStates") else {})


def _stored_action(action: Json) -> Json:
    stored_json: Json = {"name": action["name"]}
    # `requestSchemaType` names the schema of the parameters in a request for the action. The simulator only stores it.
    if action.get("requestSchemaType"):
        stored_json["requestSchemaType"] = action["requestSchemaType"]
    return stored_json | {"transitions": [_stored_transition(transition) for transition in action["transitions"]]}


def _stored_transition(transition: Json) -> Json:
    """Return a transition as FulcrumCore stores it.

    If `onError` is true, the transition applies when the action fails. `onErrorRegexp` must match the error message.
    """
    stored_json: dict[str, Any] = {"from": transition["from"], "to": transition["to"]}
    optional_members = {name: transition[name] for name in ("onError", "onErrorRegexp") if transition.get(name)}
    return stored_json | optional_members


#: The schemas of the empty service type that FulcrumCore creates for an unknown id in an agent type's `serviceTypeIds`.
EMPTY_SCHEMA: Json = {"properties": None, "validators": None}
EMPTY_LIFECYCLE: Json = {"states": None, "actions": None, "initialState": "", "terminalStates": None}
