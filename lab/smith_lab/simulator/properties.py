"""The property engine: turns the properties of a request into the stored ones, according to a schema.

A given value is processed in this order: a vault reference is stored as it is; immutability; authorizers; type and
validators; nested values; a secret goes into the vault. Without a value: the default, the generator, the old value.
Source: pkg/schema/engine.go of fulcrumproject/core.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from smith_lab.simulator.problems import PropertyErrors
from smith_lab.simulator.rows import Json
from smith_lab.simulator.validators import VALIDATORS, Lookups, check_type, cross_field_problem, is_number, refusal
from smith_lab.simulator.vault import VAULT_PREFIX, Vault, VaultOff


@dataclass(frozen=True)
class Request:
    """Who sets the properties, and in which state of the service."""

    vault: Vault
    actor: str  #: user or agent
    updating: bool
    service_status: str = ""
    lookups: Lookups | None = None  #: None for agent types, which have no such validators


def apply(request: Request, schema: Json, old: Json | None, new: Json | None) -> Json:
    """Process every declared property; drop unknown names. Raises PropertyErrors with every problem."""
    old, new = old or {}, new or {}
    result: Json = {}
    errors: list[tuple[str, str]] = []
    for name, definition in (schema.get("properties") or {}).items():
        try:
            value = _process(request, name, definition, old.get(name), new.get(name))
        except PropertyErrors as exc:
            errors.append((name, str(exc)))
            continue
        if value is not None:
            result[name] = value
        elif definition.get("required") and old.get(name) is None:
            errors.append((name, "required property is missing"))
    problem = cross_field_problem(schema.get("validators") or [], result)
    if problem:
        errors.append(("", problem))
    if errors:
        raise PropertyErrors(errors)
    return result


def _process(request: Request, name: str, definition: Json, old: Any, new: Any) -> Any:
    if definition.get("secret") and isinstance(new, str) and new.startswith(VAULT_PREFIX):
        return new
    if new is not None:
        if definition.get("immutable") and request.updating and old is not None and not _unchanged(old, new):
            raise refusal(f"{name}: property is immutable and cannot be changed")
        _authorize(request, name, definition)
        _validate(request, name, definition, new)
        return _stored(request, name, definition, old, new)
    if old is None and definition.get("default") is not None:
        default = copy.deepcopy(definition["default"])
        _validate(request, name, definition, default)
        return _stored(request, name, definition, old, default)
    if old is None and definition.get("generator"):
        # Pools are not simulated: no agent has a pool set, which the real server refuses too.
        raise refusal(f"{name}: agent has no service pool set (pools are not simulated)")
    return old


def _unchanged(old: Any, new: Any) -> bool:
    """Deep equality, except that no number equals another.

    The real server decodes stored and sent numbers into different Go types, so an immutable number is always refused.
    """
    if is_number(old) or is_number(new):
        return False
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_unchanged(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_unchanged, old, new))
    return type(old) is type(new) and bool(old == new)


def _authorize(request: Request, name: str, definition: Json) -> None:
    for item in definition.get("authorizers") or []:
        config = item["config"]
        if item["type"] == "actor" and request.actor not in config["actors"]:
            raise refusal(f"{name}: {request.actor} is not allowed to set this property")
        if item["type"] == "state" and request.updating and request.service_status not in config["allowedStates"]:
            raise refusal(f"{name}: cannot be set in state {request.service_status}")


def _validate(request: Request, name: str, definition: Json, value: Any) -> None:
    check_type(name, value, definition["type"])
    for item in definition.get("validators") or []:
        problem = VALIDATORS[item["type"]](request.lookups, item["config"], value)
        if problem:
            raise refusal(f"{name}: {problem}")


def _stored(request: Request, name: str, definition: Json, old: Any, value: Any) -> Any:
    value = _with_nested(request, name, definition, old, value)
    if not definition.get("secret"):
        return value
    try:
        reference = request.vault.save(value)
    except VaultOff:
        raise refusal(f"{name}: vault is required for secret properties but not configured") from None
    # Deleted even when the request is refused later: the real server does it outside the transaction.
    request.vault.delete(old)
    return reference


def _with_nested(request: Request, name: str, definition: Json, old: Any, value: Any) -> Any:
    if definition["type"] == "object" and definition.get("properties"):
        inner = {"properties": definition["properties"]}
        return apply(request, inner, old if isinstance(old, dict) else None, value)
    if definition["type"] == "array" and definition.get("items"):
        olds = old if isinstance(old, list) else []
        return [
            _with_item(request, f"{name}[{index}]", definition["items"], old_item, item)
            for index, (old_item, item) in enumerate(zip_longest(olds[: len(value)], value))
        ]
    return value


def _with_item(request: Request, name: str, definition: Json, old: Any, value: Any) -> Any:
    _validate(request, name, definition, value)
    return _with_nested(request, name, definition, old, value)


def references(value: Any) -> Iterator[str]:
    """Yield every `vault://` text in a value, at any depth."""
    if isinstance(value, str) and value.startswith(VAULT_PREFIX):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def secret_references(schema: Json, values: Any, kind: str) -> Iterator[str]:
    """Yield the references in properties that the schema declares as secrets of this kind."""
    if not isinstance(values, dict):
        return
    for name, definition in (schema.get("properties") or {}).items():
        yield from _definition_references(definition, values.get(name), kind)


def _definition_references(definition: Json, value: Any, kind: str) -> Iterator[str]:
    if (definition.get("secret") or {}).get("type") == kind:
        yield from references(value)
    yield from secret_references(definition, value, kind)
    if isinstance(value, list) and definition.get("items"):
        for item in value:
            yield from _definition_references(definition["items"], item, kind)
