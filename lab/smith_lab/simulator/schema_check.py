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

TYPES = frozenset({"string", "integer", "number", "boolean", "object", "array", "json", "uuid"})
#: The validators that need no look-up in the store.
PLAIN_VALIDATORS = frozenset({"minLength", "maxLength", "min", "max", "minItems", "maxItems", "pattern", "enum"})


@dataclass(frozen=True)
class Dialect:
    """The validators and authorizers that the schemas of service types, or those of agent types, may use."""

    validators: frozenset[str]
    authorizers: frozenset[str]
    cross_field: frozenset[str]  #: validators of the whole schema, which compare several properties


SERVICE_TYPES = Dialect(
    validators=PLAIN_VALIDATORS | {"serviceOption", "serviceReference"},
    authorizers=frozenset({"actor", "state"}),
    cross_field=frozenset({"exactlyOne", "uniqueValues"}),
)
AGENT_TYPES = Dialect(validators=PLAIN_VALIDATORS, authorizers=frozenset(), cross_field=frozenset({"exactlyOne"}))


def check(schema: Any, dialect: Dialect) -> None:
    """Raise a 400 for a schema that FulcrumCore refuses."""
    schema = _require_object(schema, "schema")
    properties = _require_object(schema.get("properties") or {}, "properties")
    _refuse_if(not properties, "schema must have at least one property")
    for name, definition in properties.items():
        _refuse_if(not name, "property name cannot be empty")
        _check_definition(name, definition, dialect)
    for item in _read_entries(schema, "validators"):
        _refuse_if(item["type"] not in dialect.cross_field, f"unknown schema validator: {item['type']}")
        _check_names(item)


def _check_definition(path: str, definition: Any, dialect: Dialect) -> None:
    definition = _require_object(definition, path)
    kind = definition.get("type")
    _refuse_if(kind not in TYPES, f"{path}: invalid type {kind!r}")
    for flag in ("required", "immutable"):
        _refuse_if(not isinstance(definition.get(flag) or False, bool), f"{path}: {flag} must be a boolean")
    _check_secret(path, definition)
    _check_default(path, definition)
    _check_generator(path, definition)
    for name, nested in _require_object(definition.get("properties") or {}, path).items():
        _refuse_if(not name, f"{path}: nested property name cannot be empty")
        _check_definition(f"{path}.{name}", nested, dialect)
    if definition.get("items") is not None:
        _check_definition(f"{path}[]", definition["items"], dialect)
    for item in _read_entries(definition, "validators"):
        _refuse_if(item["type"] not in dialect.validators, f"{path}: unknown validator {item['type']!r}")
        _check_validator(path, item)
    for item in _read_entries(definition, "authorizers"):
        _refuse_if(item["type"] not in dialect.authorizers, f"{path}: unknown authorizer {item['type']!r}")
        _check_authorizer(path, item)


def _check_secret(path: str, definition: Json) -> None:
    items = definition.get("items")
    has_secret_items = isinstance(items, dict) and items.get("secret") is not None
    _refuse_if(has_secret_items, f"{path}: array items cannot be secret")
    secret = definition.get("secret")
    if secret is None:
        return
    _refuse_if(definition["type"] in ("object", "array"), f"{path}: only primitive types can be secret")
    kind = _require_object(secret, path).get("type")
    _refuse_if(kind not in ("persistent", "ephemeral"), f"{path}: secret type must be 'persistent' or 'ephemeral'")


def _check_default(path: str, definition: Json) -> None:
    if definition.get("default") is None:
        return
    try:
        check_type(path, definition["default"], definition["type"])
    except PropertyErrors as exc:
        raise bad_request(f"{path}: default value type mismatch: {exc}") from exc
    _refuse_if(definition.get("generator") is not None, f"{path}: cannot have both default and generator")


def _check_generator(path: str, definition: Json) -> None:
    generator = definition.get("generator")
    if generator is None:
        return
    kind = _require_object(generator, path).get("type")
    _refuse_if(kind != "pool", f"{path}: unknown generator {kind!r}")
    pool_type = _require_object(generator.get("config") or {}, path).get("poolType")
    _refuse_if(not isinstance(pool_type, str) or not pool_type, f"{path}: pool generator requires 'poolType' config")


def _check_validator(path: str, item: Json) -> None:
    kind, config = item["type"], item["config"]
    if kind in ("minLength", "maxLength", "minItems", "maxItems"):
        value = config.get("value")
        is_valid = is_number(value) and value == int(value) and value >= 0
        _refuse_if(not is_valid, f"{path}: {kind} validator requires a non-negative integer 'value'")
    elif kind in ("min", "max"):
        _refuse_if(not is_number(config.get("value")), f"{path}: {kind} validator requires a number 'value'")
    else:
        _VALIDATOR_CHECKS[kind](path, config)


def _check_pattern(path: str, config: Json) -> None:
    pattern = config.get("pattern")
    if not isinstance(pattern, str):
        raise bad_request(f"{path}: pattern validator requires 'pattern' config")
    try:
        go_regexp.compile_pattern(pattern)
    except re.error as exc:
        raise bad_request(f"{path}: invalid regex pattern: {pattern}") from exc


def _check_enum(path: str, config: Json) -> None:
    values = config.get("values")
    _refuse_if(not isinstance(values, list) or not values, f"{path}: enum validator requires 'values' config")


def _check_option(path: str, config: Json) -> None:
    value = config.get("value")
    _refuse_if(not isinstance(value, str) or not value, f"{path}: serviceOption validator requires 'value' config")


def _check_reference(path: str, config: Json) -> None:
    types = config.get("types")
    is_valid = types is None or (isinstance(types, list) and all(isinstance(item, str) for item in types))
    _refuse_if(not is_valid, f"{path}: serviceReference 'types' must be a list of strings")
    origin = config.get("origin")
    _refuse_if(origin not in (None, "consumer", "group"), f"{path}: serviceReference 'origin' is unknown")


_VALIDATOR_CHECKS: dict[str, Callable[[str, Json], None]] = {
    "pattern": _check_pattern,
    "enum": _check_enum,
    "serviceOption": _check_option,
    "serviceReference": _check_reference,
}


def _check_authorizer(path: str, item: Json) -> None:
    name = {"actor": "actors", "state": "allowedStates"}[item["type"]]
    values = item["config"].get(name)
    is_valid = isinstance(values, list) and bool(values) and all(isinstance(value, str) for value in values)
    _refuse_if(not is_valid, f"{path}: {item['type']} authorizer requires {name!r} config")
    if item["type"] == "actor":
        _refuse_if(not set(values) <= {"user", "agent", "system"}, f"{path}: unknown actor")


def _check_names(item: Json) -> None:
    names = item["config"].get("properties")
    is_valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
    _refuse_if(not is_valid or len(names) < 2, f"{item['type']} validator requires at least 2 properties")


def _read_entries(holder: Json, name: str) -> list[Json]:
    """Return the validators or authorizers of a definition, each with `type` and an object `config`."""
    values = holder.get(name)
    if values is None:
        return []
    if not isinstance(values, list):
        raise bad_request(f"{name} must be an array")
    return [
        {"type": _require_object(value, name).get("type"), "config": _require_object(value.get("config") or {}, name)}
        for value in values
    ]


def _require_object(value: Any, what: str) -> Json:
    if not isinstance(value, dict):
        raise bad_request(f"{what}: expected an object")
    return value


def _refuse_if(wrong: bool, text: str) -> None:
    if wrong:
        raise bad_request(text)
