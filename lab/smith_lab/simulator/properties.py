"""The property engine: a request's properties become the stored ones, as a schema says.

One property is processed in this order: a vault reference passes untouched, immutability, authorizers (only for a
given value), type and validators, nested structure, secret stored; without a value: default, generator, old value.
Source: section 8.1 of the FulcrumCore reference; pkg/schema/engine.go.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from smith_lab.simulator import go_regexp
from smith_lab.simulator.problems import PropertyErrors
from smith_lab.simulator.rows import Json

VAULT_PREFIX = "vault://"


class VaultOff(Exception):
    """The server has no vault key."""


@dataclass
class Vault:
    """Secrets by reference. Its deletions are not part of any transaction, as in the real server."""

    enabled: bool = True
    secrets: dict[str, Any] = field(default_factory=dict)

    def save(self, value: Any) -> str:
        """Store a value; answer its `vault://` reference."""
        if not self.enabled:
            raise VaultOff
        reference = str(uuid.uuid4())
        self.secrets[reference] = value
        return VAULT_PREFIX + reference

    def delete(self, text: Any) -> None:
        """Forget what a `vault://` reference names; anything else is ignored."""
        if isinstance(text, str) and text.startswith(VAULT_PREFIX):
            self.secrets.pop(text.removeprefix(VAULT_PREFIX), None)


class Lookups(Protocol):
    """What validators ask the rest of the server. Each answers a problem, or None."""

    def option_problem(self, option_type: str, value: Any) -> str | None: ...

    def reference_problem(self, config: Json, value: Any) -> str | None: ...


@dataclass(frozen=True)
class Request:
    """Who sets properties, and where."""

    vault: Vault
    actor: str  #: user or agent
    updating: bool
    service_status: str = ""
    lookups: Lookups | None = None  #: None for agent types, which have no such validators


def apply(request: Request, schema: Json, old: Json | None, new: Json | None) -> Json:
    """Process every declared property. Unknown names drop. Raises PropertyErrors with all findings."""
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
    problem = _cross_field_problem(schema.get("validators") or [], result)
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
            raise _refusal(f"{name}: property is immutable and cannot be changed")
        _authorize(request, name, definition)
        _validate(request, name, definition, new)
        return _finish(request, name, definition, old, new)
    if old is None and definition.get("default") is not None:
        default = copy.deepcopy(definition["default"])
        _validate(request, name, definition, default)
        return _finish(request, name, definition, old, default)
    if old is None and definition.get("generator"):
        # Pools are not simulated: every agent here is one without a pool set, which the real server refuses too.
        raise _refusal(f"{name}: agent has no service pool set (pools are not simulated)")
    return old


def _unchanged(old: Any, new: Any) -> bool:
    """Deep equality, except that no number equals itself.

    Stored numbers and request numbers decode to different Go types, so an immutable number cannot be sent again.
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
            raise _refusal(f"{name}: {request.actor} is not allowed to set this property")
        if item["type"] == "state" and request.updating and request.service_status not in config["allowedStates"]:
            raise _refusal(f"{name}: cannot be set in state {request.service_status}")


def _validate(request: Request, name: str, definition: Json, value: Any) -> None:
    check_type(name, value, definition["type"])
    for item in definition.get("validators") or []:
        problem = _VALIDATORS[item["type"]](request, item["config"], value)
        if problem:
            raise _refusal(f"{name}: {problem}")


def _finish(request: Request, name: str, definition: Json, old: Any, value: Any) -> Any:
    value = _nested(request, name, definition, old, value)
    if not definition.get("secret"):
        return value
    try:
        reference = request.vault.save(value)
    except VaultOff:
        raise _refusal(f"{name}: vault is required for secret properties but not configured") from None
    # At once, even when the request is refused later: the real server does it outside the transaction.
    request.vault.delete(old)
    return reference


def _nested(request: Request, name: str, definition: Json, old: Any, value: Any) -> Any:
    if definition["type"] == "object" and definition.get("properties"):
        inner = {"properties": definition["properties"]}
        return apply(request, inner, old if isinstance(old, dict) else None, value)
    if definition["type"] == "array" and definition.get("items"):
        olds = old if isinstance(old, list) else []
        return [
            _item(request, f"{name}[{index}]", definition["items"], olds[index] if index < len(olds) else None, item)
            for index, item in enumerate(value)
        ]
    return value


def _item(request: Request, name: str, definition: Json, old: Any, value: Any) -> Any:
    _validate(request, name, definition, value)
    return _nested(request, name, definition, old, value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_type(name: str, value: Any, kind: str) -> None:
    """Raise PropertyErrors unless the value is of the declared type; 2.0 is an integer, true is not a number."""
    if not _TYPE_CHECKS[kind](value):
        raise _refusal(f"{name}: expected {kind}, got {json.dumps(value)[:40]}")


def _is_uuid(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(uuid.UUID(value))
    except ValueError:
        return False


_TYPE_CHECKS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: is_number(value) and value == int(value),
    "number": is_number,
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "json": lambda value: True,
    "uuid": _is_uuid,
}


def _refusal(text: str) -> PropertyErrors:
    return PropertyErrors([("", text)])


def _string_length_problem(value: Any, limit: float, *, low: bool) -> str | None:
    # Go counts the bytes of a string.
    return _limit_problem(len(value.encode()), limit, low) if isinstance(value, str) else "expected a string"


def _list_length_problem(value: Any, limit: float, *, low: bool) -> str | None:
    return _limit_problem(len(value), limit, low) if isinstance(value, list) else "expected an array"


def _range_problem(value: Any, limit: float, *, low: bool) -> str | None:
    return _limit_problem(value, limit, low) if is_number(value) else "expected a number"


def _limit_problem(size: float, limit: float, low: bool) -> str | None:
    if size < limit if low else size > limit:
        return f"{size} is {'less than minimum' if low else 'more than maximum'} {limit}"
    return None


def _pattern_problem(request: Request, config: Json, value: Any) -> str | None:
    if isinstance(value, str) and go_regexp.matches(config["pattern"], value):
        return None
    return f"string does not match required pattern {config['pattern']}"


def _enum_problem(request: Request, config: Json, value: Any) -> str | None:
    known = any(type(value) is type(item) and value == item for item in config["values"])
    return None if known else f"value is not one of {config['values']}"


def _option_problem(request: Request, config: Json, value: Any) -> str | None:
    return request.lookups.option_problem(config["value"], value) if request.lookups else None


def _reference_problem(request: Request, config: Json, value: Any) -> str | None:
    return request.lookups.reference_problem(config, value) if request.lookups else None


_VALIDATORS: dict[str, Callable[[Request, Json, Any], str | None]] = {
    "minLength": lambda _, config, value: _string_length_problem(value, config["value"], low=True),
    "maxLength": lambda _, config, value: _string_length_problem(value, config["value"], low=False),
    "minItems": lambda _, config, value: _list_length_problem(value, config["value"], low=True),
    "maxItems": lambda _, config, value: _list_length_problem(value, config["value"], low=False),
    "min": lambda _, config, value: _range_problem(value, config["value"], low=True),
    "max": lambda _, config, value: _range_problem(value, config["value"], low=False),
    "pattern": _pattern_problem,
    "enum": _enum_problem,
    "serviceOption": _option_problem,
    "serviceReference": _reference_problem,
}


def _cross_field_problem(validators: list[Json], result: Json) -> str | None:
    for item in validators:
        names = item["config"]["properties"]
        given = [name for name in names if result.get(name) is not None]
        if item["type"] == "exactlyOne" and len(given) != 1:
            return f"exactly one of {names} must be provided"
        values = [json.dumps(result[name], sort_keys=True) for name in given]
        if item["type"] == "uniqueValues" and len(set(values)) != len(values):
            return f"properties {names} must have unique values"
    return None


def references(value: Any) -> Iterator[str]:
    """Every `vault://` text in a value, at any depth."""
    if isinstance(value, str) and value.startswith(VAULT_PREFIX):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def secret_references(schema: Json, values: Any, kind: str) -> Iterator[str]:
    """The references held by properties that the schema marks as secrets of this kind."""
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
