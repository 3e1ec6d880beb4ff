"""Checks the property schemas of service types and the configuration schemas of agent types as FulcrumCore does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from smith_lab.simulator import go_regexp
from smith_lab.simulator.problems import PropertyErrors, bad_request
from smith_lab.simulator.rows import Json
from smith_lab.simulator.validators import check_type, is_number

PROPERTY_TYPES = frozenset({"string", "integer", "number", "boolean", "object", "array", "json", "uuid"})
#: The types of the validators that need no look-up in the simulator's tables.
VALIDATORS_WITHOUT_LOOKUP = frozenset(
    {"minLength", "maxLength", "min", "max", "minItems", "maxItems", "pattern", "enum"}
)
#: The least number of properties that a validator must name if it compares several properties.
MIN_COMPARED_PROPERTIES = 2


@dataclass(frozen=True)
class AllowedConstraints:
    """The types of validators and authorizers that a schema may contain.

    A validator limits the values of a property, or the combination of several properties. An authorizer limits who may
    set a property, or in which states of the service it may be set.
    """

    validators: frozenset[str]  #: types of validators of one property
    authorizers: frozenset[str]  #: types of authorizers
    cross_property_validators: frozenset[str]  #: types of validators that compare several properties


CONSTRAINTS_ALLOWED_IN_SERVICE_TYPES = AllowedConstraints(
    validators=VALIDATORS_WITHOUT_LOOKUP | {"serviceOption", "serviceReference"},
    authorizers=frozenset({"actor", "state"}),
    cross_property_validators=frozenset({"exactlyOne", "uniqueValues"}),
)
CONSTRAINTS_ALLOWED_IN_AGENT_TYPES = AllowedConstraints(
    validators=VALIDATORS_WITHOUT_LOOKUP, authorizers=frozenset(), cross_property_validators=frozenset({"exactlyOne"})
)


def check(schema: Any, allowed_constraints: AllowedConstraints) -> None:
    """Raise a 400 for a property schema or configuration schema that FulcrumCore refuses."""
    schema = _require_object(schema, "schema")
    properties = _require_object(schema.get("properties") or {}, "properties")
    _refuse_if(not properties, "schema must have at least one property")
    for name, definition in properties.items():
        _refuse_if(not name, "property name cannot be empty")
        _check_property(name, definition, allowed_constraints)
    for validator in _read_constraints(schema, "validators"):
        _refuse_if(
            validator["type"] not in allowed_constraints.cross_property_validators,
            f"unknown schema validator: {validator['type']}",
        )
        _check_cross_property_validator(validator)


def _check_property(path: str, definition: Any, allowed_constraints: AllowedConstraints) -> None:
    """Check the definition of a property, and of the properties in it.

    `path` names the property in messages: `network.ip` is a nested property; `tags[]` is an item of the array `tags`.
    """
    definition = _require_object(definition, path)
    property_type = definition.get("type")
    _refuse_if(property_type not in PROPERTY_TYPES, f"{path}: invalid type {property_type!r}")
    for flag in ("required", "immutable"):
        value = definition.get(flag)  # null, 0 and other empty values count as false
        _refuse_if(bool(value) and not isinstance(value, bool), f"{path}: {flag} must be a boolean")
    _check_secret(path, definition)
    _check_default(path, definition)
    _check_generator(path, definition)
    for name, nested_definition in _require_object(definition.get("properties") or {}, path).items():
        _refuse_if(not name, f"{path}: nested property name cannot be empty")
        _check_property(f"{path}.{name}", nested_definition, allowed_constraints)
    if definition.get("items") is not None:
        _check_property(f"{path}[]", definition["items"], allowed_constraints)
    for validator in _read_constraints(definition, "validators"):
        _refuse_if(
            validator["type"] not in allowed_constraints.validators, f"{path}: unknown validator {validator['type']!r}"
        )
        _check_validator(path, validator)
    for authorizer in _read_constraints(definition, "authorizers"):
        _refuse_if(
            authorizer["type"] not in allowed_constraints.authorizers,
            f"{path}: unknown authorizer {authorizer['type']!r}",
        )
        _check_authorizer(path, authorizer)


def _check_secret(path: str, definition: Json) -> None:
    """Check the member `secret` of a property. The `type` in `secret` is `persistent` or `ephemeral`.

    FulcrumCore stores the values of secret properties in its vault. It deletes ephemeral values when a job of the
    service ends.
    """
    items = definition.get("items")
    has_secret_items = isinstance(items, dict) and items.get("secret") is not None
    _refuse_if(has_secret_items, f"{path}: array items cannot be secret")
    secret = definition.get("secret")
    if secret is None:
        return
    _refuse_if(definition["type"] in ("object", "array"), f"{path}: only primitive types can be secret")
    secret_type = _require_object(secret, path).get("type")
    _refuse_if(
        secret_type not in ("persistent", "ephemeral"), f"{path}: secret type must be 'persistent' or 'ephemeral'"
    )


def _check_default(path: str, definition: Json) -> None:
    if definition.get("default") is None:
        return
    try:
        check_type(path, definition["default"], definition["type"])
    except PropertyErrors as exc:
        raise bad_request(f"{path}: default value type mismatch: {exc}") from exc
    _refuse_if(definition.get("generator") is not None, f"{path}: cannot have both default and generator")


def _check_generator(path: str, definition: Json) -> None:
    """Check the generator of a property. A generator takes the property's value from a pool if a request sets none.

    `poolType` is the type of the pool (`Pool.type` in rows.py).
    """
    generator = definition.get("generator")
    if generator is None:
        return
    generator_type = _require_object(generator, path).get("type")
    _refuse_if(generator_type != "pool", f"{path}: unknown generator {generator_type!r}")
    pool_type = _require_object(generator.get("config") or {}, path).get("poolType")
    _refuse_if(not isinstance(pool_type, str) or not pool_type, f"{path}: pool generator requires 'poolType' config")


def _check_validator(path: str, validator: Json) -> None:
    validator_type, config = validator["type"], validator["config"]
    if validator_type in ("minLength", "maxLength", "minItems", "maxItems"):
        value = config.get("value")
        is_valid = is_number(value) and value == int(value) and value >= 0
        _refuse_if(not is_valid, f"{path}: {validator_type} validator requires a non-negative integer 'value'")
    elif validator_type in ("min", "max"):
        _refuse_if("value" not in config, f"{path}: {validator_type} validator requires 'value' config")
    else:
        _CONFIG_CHECKS[validator_type](path, config)


def _check_pattern_config(path: str, config: Json) -> None:
    pattern = config.get("pattern")
    if not isinstance(pattern, str):
        raise bad_request(f"{path}: pattern validator requires 'pattern' config")
    try:
        go_regexp.compile_pattern(pattern)
    except re.error as exc:
        raise bad_request(f"{path}: invalid regex pattern: {pattern}") from exc


def _check_enum_config(path: str, config: Json) -> None:
    values = config.get("values")
    _refuse_if(not isinstance(values, list) or not values, f"{path}: enum validator requires 'values' config")


def _check_service_option_config(path: str, config: Json) -> None:
    """Check the config of a `serviceOption`. This validator accepts only values that the provider offers as options.

    `value` in the config is the type of these options (`OptionType.type` in rows.py).
    """
    value = config.get("value")
    _refuse_if(not isinstance(value, str) or not value, f"{path}: serviceOption validator requires 'value' config")


def _check_service_reference_config(path: str, config: Json) -> None:
    """Check the config of a `serviceReference`: the property must contain the id of another service.

    `types` contains the names of the service types that the other service may have. `origin` is `consumer` if both
    services must have the same consumer (the customer who ordered them), or `group` if they must be in the same group
    of services. Without `origin`, neither is required.
    """
    types = config.get("types")
    is_valid = types is None or _is_list_of_strings(types)
    _refuse_if(not is_valid, f"{path}: serviceReference 'types' must be a list of strings")
    origin = config.get("origin")
    _refuse_if(
        origin not in (None, "consumer", "group"), f"{path}: serviceReference 'origin' must be 'consumer' or 'group'"
    )


#: Maps the type of a validator to the function that checks the validator's `config`.
_CONFIG_CHECKS: dict[str, Callable[[str, Json], None]] = {
    "pattern": _check_pattern_config,
    "enum": _check_enum_config,
    "serviceOption": _check_service_option_config,
    "serviceReference": _check_service_reference_config,
}


def _check_authorizer(path: str, authorizer: Json) -> None:
    name = {"actor": "actors", "state": "allowedStates"}[authorizer["type"]]
    values = authorizer["config"].get(name)
    is_valid = _is_list_of_strings(values) and bool(values)
    _refuse_if(not is_valid, f"{path}: {authorizer['type']} authorizer requires {name!r} config")
    if authorizer["type"] == "actor":
        _refuse_if(not set(values) <= {"user", "agent", "system"}, f"{path}: unknown actor")


def _check_cross_property_validator(validator: Json) -> None:
    names = validator["config"].get("properties")
    is_valid = _is_list_of_strings(names) and len(names) >= MIN_COMPARED_PROPERTIES
    _refuse_if(not is_valid, f"{validator['type']} validator requires at least 2 properties")


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _read_constraints(definition: Json, name: str) -> list[Json]:
    """Return the validators or authorizers of a definition or schema. `name` is `validators` or `authorizers`.

    Each returned object has the members `type` and `config`. `config` is an object.
    """
    values = definition.get(name)
    if values is None:
        return []
    if not isinstance(values, list):
        raise bad_request(f"{name} must be an array")
    constraints = []
    for value in values:
        item = _require_object(value, name)
        constraints.append({"type": item.get("type"), "config": _require_object(item.get("config") or {}, name)})
    return constraints


def _require_object(value: Any, label: str) -> Json:
    if not isinstance(value, dict):
        raise bad_request(f"{label}: expected an object")
    return value


def _refuse_if(is_invalid: bool, text: str) -> None:
    if is_invalid:
        raise bad_request(text)
