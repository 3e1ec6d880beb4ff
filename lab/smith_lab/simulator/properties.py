"""Converts the properties in a request to the properties that are stored, as a schema requires.

If the request sets a property, these steps run in this order:
  1. An immutable property must not change.
  2. The property's authorizers must allow the caller and the service's state.
  3. The value must have the declared type and satisfy the validators.
  4. Nested values are processed.
  5. A secret is stored in the vault. A vault reference is stored in place of the secret.
If the request sets a secret property to a vault reference, the reference is stored without these steps.

If the request does not set a property, its old value stays. A property without an old value gets the schema's default,
or a value from its generator, which takes values from a pool. The real server implements these rules in
pkg/schema/engine.go of fulcrumproject/core.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from smith_lab.simulator.problems import PropertyErrors
from smith_lab.simulator.rows import Json
from smith_lab.simulator.validators import (
    VALIDATORS,
    Lookups,
    check_type,
    cross_property_problem,
    is_number,
    property_error,
)
from smith_lab.simulator.vault import VAULT_PREFIX, Vault, VaultDisabled


@dataclass(frozen=True)
class ChangeContext:
    """The arguments of `process` besides the schema and the values: who changes the properties, and in which state."""

    vault: Vault
    actor: str  #: who sets the properties: `user` (an admin or a participant) or `agent`
    is_update: bool  #: whether the request changes properties that exist; false: it sets them for the first time
    service_status: str = ""  #: the service's state before the request
    lookups: Lookups | None = None  #: look-ups in the store; None if no validator of the schema needs them
    #: A function of a pool's type and a property's name. It allocates a value of the pool to the property, and returns
    #: the value. It raises PropertyErrors. None: there are no pools.
    allocate: Callable[[str, str], Any] | None = None


def process(context: ChangeContext, schema: Json, old: Json | None, new: Json | None) -> Json:
    """Return the properties to store. `old` are the stored properties. `new` are the properties in the request.

    Omit properties that are not in the schema. Raises PropertyErrors with all problems.
    """
    old, new = old or {}, new or {}
    result: Json = {}
    errors: list[tuple[str, str]] = []
    for name, definition in (schema.get("properties") or {}).items():
        try:
            value = _process_property(context, name, definition, old.get(name), new.get(name))
        except PropertyErrors as exc:
            errors.append((name, str(exc)))
            continue
        if value is not None:
            result[name] = value
        elif definition.get("required") and old.get(name) is None:
            errors.append((name, "required property is missing"))
    problem = cross_property_problem(schema.get("validators") or [], result)
    if problem:
        errors.append(("", problem))
    if errors:
        raise PropertyErrors(errors)
    return result


def _process_property(context: ChangeContext, name: str, definition: Json, old: Any, new: Any) -> Any:
    if definition.get("secret") and isinstance(new, str) and new.startswith(VAULT_PREFIX):
        return new
    if new is not None:
        must_not_change = definition.get("immutable") and context.is_update and old is not None
        if must_not_change and not _equal_in_go(old, new):
            raise property_error(f"{name}: property is immutable and cannot be changed")
        _refuse_unless_authorized(context, name, definition)
        _validate(context, name, definition, new)
        return _value_to_store(context, name, definition, old, new)
    if old is None and definition.get("default") is not None:
        default = copy.deepcopy(definition["default"])
        _validate(context, name, definition, default)
        return _value_to_store(context, name, definition, old, default)
    if old is None and definition.get("generator"):
        if context.allocate is None:
            raise property_error(f"{name}: there are no pools")
        return context.allocate(definition["generator"]["config"]["poolType"], name)
    return old


def _equal_in_go(old: Any, new: Any) -> bool:
    """Return whether the real server considers the stored value `old` and the sent value `new` equal.

    The real server decodes a stored number and a sent number into different Go types. So it never considers two numbers
    equal, and refuses every request that sets an immutable number again, even to the same value.
    """
    if is_number(old) or is_number(new):
        return False
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_equal_in_go(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_equal_in_go, old, new))
    return type(old) is type(new) and bool(old == new)


def _refuse_unless_authorized(context: ChangeContext, name: str, definition: Json) -> None:
    for authorizer in definition.get("authorizers") or []:
        config = authorizer["config"]
        if authorizer["type"] == "actor" and context.actor not in config["actors"]:
            raise property_error(f"{name}: {context.actor} is not allowed to set this property")
        if (
            authorizer["type"] == "state"
            and context.is_update
            and context.service_status not in config["allowedStates"]
        ):
            raise property_error(f"{name}: cannot be set in state {context.service_status}")


def _validate(context: ChangeContext, name: str, definition: Json, value: Any) -> None:
    check_type(name, value, definition["type"])
    for validator in definition.get("validators") or []:
        problem = VALIDATORS[validator["type"]](context.lookups, validator["config"], value)
        if problem:
            raise property_error(f"{name}: {problem}")


def _value_to_store(context: ChangeContext, name: str, definition: Json, old: Any, value: Any) -> Any:
    """Process the nested values. Return the value to store. For a secret, this is a vault reference."""
    value = _process_nested(context, name, definition, old, value)
    if not definition.get("secret"):
        return value
    try:
        reference = context.vault.save(value)
    except VaultDisabled:
        raise property_error(f"{name}: vault is required for secret properties but not configured") from None
    # The real server deletes the old secret outside the transaction. So the old secret stays deleted even if the
    # request is refused later.
    context.vault.delete(old)
    return reference


def _process_nested(context: ChangeContext, name: str, definition: Json, old: Any, value: Any) -> Any:
    """Process the members of an object or the items of an array. Return any other value unchanged."""
    if definition["type"] == "object" and definition.get("properties"):
        nested_schema = {"properties": definition["properties"]}
        return process(context, nested_schema, old if isinstance(old, dict) else None, value)
    if definition["type"] == "array" and definition.get("items"):
        old_items = old if isinstance(old, list) else []
        pairs = zip_longest(old_items[: len(value)], value)  # an item without an old item gets None
        return [
            _process_item(context, f"{name}[{index}]", definition["items"], old_item, item)
            for index, (old_item, item) in enumerate(pairs)
        ]
    return value


def _process_item(context: ChangeContext, name: str, definition: Json, old: Any, value: Any) -> Any:
    """Process an item of an array. Authorizers in the item's definition have no effect."""
    _validate(context, name, definition, value)
    return _process_nested(context, name, definition, old, value)


def vault_references(value: Any) -> Iterator[str]:
    """Yield every vault reference in a value, at any depth."""
    if isinstance(value, str) and value.startswith(VAULT_PREFIX):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from vault_references(item)
    elif isinstance(value, list):
        for item in value:
            yield from vault_references(item)


def vault_references_of_type(schema: Json, values: Any, secret_type: str) -> Iterator[str]:
    """Yield only the vault references in properties that the schema declares as secrets of this type.

    A secret is `persistent` or `ephemeral`. FulcrumCore deletes an ephemeral secret when a job of the service ends.
    """
    if not isinstance(values, dict):
        return
    for name, definition in (schema.get("properties") or {}).items():
        yield from _references_in_property(definition, values.get(name), secret_type)


def _references_in_property(definition: Json, value: Any, secret_type: str) -> Iterator[str]:
    if (definition.get("secret") or {}).get("type") == secret_type:
        yield from vault_references(value)
    # The definition of an object has the member `properties`, as a schema does.
    yield from vault_references_of_type(definition, value, secret_type)
    if isinstance(value, list) and definition.get("items"):
        for item in value:
            yield from _references_in_property(definition["items"], item, secret_type)
