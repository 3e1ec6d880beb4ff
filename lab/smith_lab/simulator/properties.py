"""Converts the properties in a request to the properties to store, by the rules of a schema.

If the request sets a property, these steps run in this order:
  1. An immutable property must not change.
  2. The `authorizers` in the property's definition must allow the caller and the service's state.
  3. The value must have the declared type and satisfy the validators.
  4. Steps 1 to 5 run for each member of an object. Only steps 3 and 4 run for each item of an array.
  5. A secret is stored in the vault. A vault reference is stored in place of the secret.
If the request sets a secret property to a vault reference, the reference is stored without these steps.

If the request does not set a property, the stored value stays. A property without a stored value gets the schema's
default, or a value from its generator, which takes values from one of FulcrumCore's pools of values. FulcrumCore
implements these rules in pkg/schema/engine.go of fulcrumproject/core.
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
    combination_problem,
    is_number,
    property_error,
)
from smith_lab.simulator.vault import VAULT_PREFIX, Vault, VaultDisabled


@dataclass(frozen=True)
class ChangeContext:
    """The caller who changes properties, the state of the service, and the objects that `process` uses."""

    vault: Vault
    actor: str  #: who sets the properties: `user` (an admin or a participant) or `agent`
    is_update: bool  #: whether the service, or the agent's configuration, exists already; false: the request creates it
    service_status: str = ""  #: the service's lifecycle state before the request
    #: Checks whether a value is one that the provider offers (a service option in FulcrumCore), or the id of a service.
    #: None if no validator needs this check.
    lookups: Lookups | None = None
    #: A function that gets a pool's type and a property's name. It allocates a value of the pool to the property, and
    #: returns the value. It may raise PropertyErrors. None: there are no pools.
    allocate_value: Callable[[str, str], Any] | None = None


def process(
    context: ChangeContext, schema: Json, stored_properties: Json | None, requested_properties: Json | None
) -> Json:
    """Return the properties to store. `requested_properties` are the properties in the request.

    Omit properties that are not in the schema. Raises PropertyErrors with the problems of all properties.
    """
    stored_properties = stored_properties or {}
    requested_properties = requested_properties or {}
    result: Json = {}
    errors: list[tuple[str, str]] = []
    for name, definition in (schema.get("properties") or {}).items():
        try:
            value = _process_property(
                context, name, definition, stored_properties.get(name), requested_properties.get(name)
            )
        except PropertyErrors as exc:
            errors.append((name, str(exc)))
            continue
        if value is not None:
            result[name] = value
        elif definition.get("required") and stored_properties.get(name) is None:
            errors.append((name, "required property is missing"))
    # The validators of the schema compare several properties. The validators of a property check one value.
    problem = combination_problem(schema.get("validators") or [], result)
    if problem:
        errors.append(("", problem))
    if errors:
        raise PropertyErrors(errors)
    return result


def _process_property(
    context: ChangeContext, name: str, definition: Json, stored_value: Any, requested_value: Any
) -> Any:
    """Return the value to store, or None if the property has no value. Raises PropertyErrors."""
    if definition.get("secret") and isinstance(requested_value, str) and requested_value.startswith(VAULT_PREFIX):
        return requested_value
    if requested_value is not None:
        must_not_change = definition.get("immutable") and context.is_update and stored_value is not None
        if must_not_change and not _are_equal_in_go(stored_value, requested_value):
            raise property_error(f"{name}: property is immutable and cannot be changed")
        _refuse_unless_authorized(context, name, definition)
        _validate(context, name, definition, requested_value)
        return _process_value(context, name, definition, stored_value, requested_value)
    if stored_value is None and definition.get("default") is not None:
        default = copy.deepcopy(definition["default"])
        _validate(context, name, definition, default)
        return _process_value(context, name, definition, stored_value, default)
    if stored_value is None and definition.get("generator"):
        if context.allocate_value is None:
            raise property_error(f"{name}: there are no pools")
        return context.allocate_value(definition["generator"]["config"]["poolType"], name)
    return stored_value


def _are_equal_in_go(stored_value: Any, requested_value: Any) -> bool:
    """Return whether FulcrumCore considers a property's stored value and its requested value equal.

    FulcrumCore decodes a stored number and a requested number into different Go types. So it never considers two
    numbers equal, and refuses every request that sets an immutable number again, even to the same value.
    """
    if is_number(stored_value) or is_number(requested_value):
        return False
    if isinstance(stored_value, dict) and isinstance(requested_value, dict):
        return stored_value.keys() == requested_value.keys() and all(
            _are_equal_in_go(stored_value[key], requested_value[key]) for key in stored_value
        )
    if isinstance(stored_value, list) and isinstance(requested_value, list):
        return len(stored_value) == len(requested_value) and all(map(_are_equal_in_go, stored_value, requested_value))
    return type(stored_value) is type(requested_value) and bool(stored_value == requested_value)


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


def _process_value(context: ChangeContext, name: str, definition: Json, stored_value: Any, value: Any) -> Any:
    """Process the nested values. If the property is secret, store it in the vault and return its vault reference."""
    value = _process_nested(context, name, definition, stored_value, value)
    if not definition.get("secret"):
        return value
    try:
        reference = context.vault.save(value)
    except VaultDisabled:
        raise property_error(f"{name}: vault is required for secret properties but not configured") from None
    # Like FulcrumCore, delete the old secret now. It is not restored if the request is refused later.
    context.vault.delete(stored_value)
    return reference


def _process_nested(context: ChangeContext, name: str, definition: Json, stored_value: Any, value: Any) -> Any:
    """Process the members of an object or the items of an array. Return any other value unchanged."""
    if definition["type"] == "object" and definition.get("properties"):
        nested_schema = {"properties": definition["properties"]}
        return process(context, nested_schema, stored_value if isinstance(stored_value, dict) else None, value)
    if definition["type"] == "array" and definition.get("items"):
        stored_items = stored_value if isinstance(stored_value, list) else []
        pairs = zip_longest(stored_items[: len(value)], value)  # the stored item is None if the list has become longer
        return [
            _process_item(context, f"{name}[{index}]", definition["items"], stored_item, item)
            for index, (stored_item, item) in enumerate(pairs)
        ]
    return value


def _process_item(context: ChangeContext, name: str, definition: Json, stored_value: Any, value: Any) -> Any:
    """Process an item of an array. Authorizers in the item's definition have no effect."""
    _validate(context, name, definition, value)
    return _process_nested(context, name, definition, stored_value, value)


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
    """Yield the vault references in properties that the schema declares as secrets of the type `secret_type`.

    The type is `persistent` or `ephemeral`. FulcrumCore deletes an ephemeral secret when a job of the service ends.
    """
    if not isinstance(values, dict):
        return
    for name, definition in (schema.get("properties") or {}).items():
        yield from _references_in_property(definition, values.get(name), secret_type)


def _references_in_property(definition: Json, value: Any, secret_type: str) -> Iterator[str]:
    if (definition.get("secret") or {}).get("type") == secret_type:
        yield from vault_references(value)
    # An object's definition is passed as a schema, because it has the member `properties`, as a schema does.
    yield from vault_references_of_type(definition, value, secret_type)
    if isinstance(value, list) and definition.get("items"):
        for item in value:
            yield from _references_in_property(definition["items"], item, secret_type)
