"""Converts the properties in a request to the properties that are stored, as a schema requires.

If the request sets a property, these steps run: an immutable property must not change; the authorizers must allow the
caller and the state; the type and the validators are checked; nested values are processed; a secret is replaced with a
vault reference. If the new value of a secret property already is a vault reference, it is stored without these steps.
If the request does not set a property, its old value stays. If it has no old value, the schema's default or generator
provides the value. The real server implements these rules in pkg/schema/engine.go of fulcrumproject/core.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from smith_lab.simulator.problems import PropertyErrors
from smith_lab.simulator.rows import Json
from smith_lab.simulator.validators import (
    VALIDATORS,
    Lookups,
    check_type,
    cross_field_problem,
    is_number,
    property_error,
)
from smith_lab.simulator.vault import VAULT_PREFIX, Vault, VaultDisabled


@dataclass(frozen=True)
class PropertyChange:
    """The conditions under which a request changes properties, on which the checks of the properties depend."""

    vault: Vault
    actor: str  #: who sets the properties: `user` (an admin or a participant) or `agent`
    updating: bool  #: whether the service or agent existed before the request
    service_status: str = ""  #: the service's state before the request
    lookups: Lookups | None = None  #: None if no validator of the schema needs a look-up in the store


def apply(change: PropertyChange, schema: Json, old: Json | None, new: Json | None) -> Json:
    """Return the properties to store. `old` are the stored properties, `new` those in the request.

    A property that is not in the schema is omitted. Raises PropertyErrors with all problems.
    """
    old, new = old or {}, new or {}
    result: Json = {}
    errors: list[tuple[str, str]] = []
    for name, definition in (schema.get("properties") or {}).items():
        try:
            value = _process_property(change, name, definition, old.get(name), new.get(name))
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


def _process_property(change: PropertyChange, name: str, definition: Json, old: Any, new: Any) -> Any:
    if definition.get("secret") and isinstance(new, str) and new.startswith(VAULT_PREFIX):
        return new
    if new is not None:
        if definition.get("immutable") and change.updating and old is not None and not _equal_in_go(old, new):
            raise property_error(f"{name}: property is immutable and cannot be changed")
        _authorize(change, name, definition)
        _validate(change, name, definition, new)
        return _store_value(change, name, definition, old, new)
    if old is None and definition.get("default") is not None:
        default = copy.deepcopy(definition["default"])
        _validate(change, name, definition, default)
        return _store_value(change, name, definition, old, default)
    if old is None and definition.get("generator"):
        # Pools are not simulated, so no agent has a pool set. The real server refuses such an agent, too.
        raise property_error(f"{name}: agent has no service pool set (pools are not simulated)")
    return old


def _equal_in_go(old: Any, new: Any) -> bool:
    """Return whether the real server considers a stored and a sent value equal. It never considers two numbers equal.

    The reason is that it decodes the stored number and the sent number into different Go types. So it refuses every
    request that sets an immutable number a second time, even to the same value.
    """
    if is_number(old) or is_number(new):
        return False
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_equal_in_go(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_equal_in_go, old, new))
    return type(old) is type(new) and bool(old == new)


def _authorize(change: PropertyChange, name: str, definition: Json) -> None:
    for item in definition.get("authorizers") or []:
        config = item["config"]
        if item["type"] == "actor" and change.actor not in config["actors"]:
            raise property_error(f"{name}: {change.actor} is not allowed to set this property")
        if item["type"] == "state" and change.updating and change.service_status not in config["allowedStates"]:
            raise property_error(f"{name}: cannot be set in state {change.service_status}")


def _validate(change: PropertyChange, name: str, definition: Json, value: Any) -> None:
    check_type(name, value, definition["type"])
    for item in definition.get("validators") or []:
        problem = VALIDATORS[item["type"]](change.lookups, item["config"], value)
        if problem:
            raise property_error(f"{name}: {problem}")


def _store_value(change: PropertyChange, name: str, definition: Json, old: Any, value: Any) -> Any:
    """Process the nested values. Return the value to store, which for a secret is a vault reference."""
    value = _process_nested(change, name, definition, old, value)
    if not definition.get("secret"):
        return value
    try:
        reference = change.vault.save(value)
    except VaultDisabled:
        raise property_error(f"{name}: vault is required for secret properties but not configured") from None
    # The old secret stays deleted even if the request is refused later, because the real server deletes it outside
    # the transaction.
    change.vault.delete(old)
    return reference


def _process_nested(change: PropertyChange, name: str, definition: Json, old: Any, value: Any) -> Any:
    """Return an object with processed members or an array with processed items. Return any other value unchanged."""
    if definition["type"] == "object" and definition.get("properties"):
        inner = {"properties": definition["properties"]}
        return apply(change, inner, old if isinstance(old, dict) else None, value)
    if definition["type"] == "array" and definition.get("items"):
        old_items = old if isinstance(old, list) else []
        return [
            _process_item(change, f"{name}[{index}]", definition["items"], old_item, item)
            for index, (old_item, item) in enumerate(zip_longest(old_items[: len(value)], value))
        ]
    return value


def _process_item(change: PropertyChange, name: str, definition: Json, old: Any, value: Any) -> Any:
    _validate(change, name, definition, value)
    return _process_nested(change, name, definition, old, value)


def vault_references(value: Any) -> Iterator[str]:
    """Yield every `vault://` text in a value, at any depth."""
    if isinstance(value, str) and value.startswith(VAULT_PREFIX):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from vault_references(item)
    elif isinstance(value, list):
        for item in value:
            yield from vault_references(item)


def secret_references(schema: Json, values: Any, kind: str) -> Iterator[str]:
    """Yield the vault references in properties that the schema declares as secrets of this kind.

    The kinds are `persistent` and `ephemeral`. FulcrumCore deletes an ephemeral secret when a job of the service ends.
    """
    if not isinstance(values, dict):
        return
    for name, definition in (schema.get("properties") or {}).items():
        yield from _definition_references(definition, values.get(name), kind)


def _definition_references(definition: Json, value: Any, kind: str) -> Iterator[str]:
    if (definition.get("secret") or {}).get("type") == kind:
        yield from vault_references(value)
    yield from secret_references(definition, value, kind)
    if isinstance(value, list) and definition.get("items"):
        for item in value:
            yield from _definition_references(definition["items"], item, kind)
