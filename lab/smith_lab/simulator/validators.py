"""Implements the validators of a property schema, and checks whether a value has the declared type.

A property schema declares the properties of a service, or of an agent's configuration. A validator is a function that
returns the text of a problem, or None if the value is valid. Its parameters are the look-ups in the simulator's tables,
the validator's configuration in the schema, and the value. If the look-ups are None, `serviceOption` and
`serviceReference` accept every value. `combination_problem` runs the validators that compare several properties.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from smith_lab.simulator import go_regexp
from smith_lab.simulator.problems import PropertyErrors
from smith_lab.simulator.rows import Json

#: The greatest number of characters of a wrong value that an error text contains.
MAX_SHOWN_CHARACTERS = 40
#: The greatest integer that FulcrumCore accepts: the greatest value of Go's int64.
MAX_INT64 = 2**63 - 1


class Lookups(Protocol):
    """Look-ups in the simulator's tables, for validators of a service's properties.

    Each method returns the text of a problem, or None.
    """

    def option_problem(self, option_type: str, value: Any) -> str | None:
        """Return a problem unless the service's provider offers this value in its options of the type `option_type`."""

    def reference_problem(self, config: Json, value: Any) -> str | None:
        """Return a problem unless the value is the id of a service that the validator's `config` allows."""


def is_number(value: Any) -> bool:
    """Return whether the value is a JSON number. A bool is an int in Python, but it is not a JSON number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_type(name: str, value: Any, type_name: str) -> None:
    """Raise PropertyErrors unless the value has the type `type_name`. 2.0 counts as an integer."""
    if not _TYPE_CHECKS[type_name](value):
        shown_value = json.dumps(value)[:MAX_SHOWN_CHARACTERS]
        raise property_error(f"{name}: expected {type_name}, got {shown_value}")


def _is_uuid(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(uuid.UUID(value))
    except ValueError:
        return False


_TYPE_CHECKS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: is_number(value) and value == int(value) and abs(value) <= MAX_INT64,
    "number": is_number,
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "json": lambda value: True,
    "uuid": _is_uuid,
}


def property_error(text: str) -> PropertyErrors:
    """Return an error about one property. `text` contains the name of the property, such as `network.ip`."""
    return PropertyErrors([("", text)])  # properties.py replaces "" by the name of the top-level property


def _string_length_problem(value: Any, bound: float, *, is_minimum: bool) -> str | None:
    if not isinstance(value, str):
        return "expected a string"
    length_in_bytes = len(value.encode())  # as in Go
    return _bound_problem(length_in_bytes, bound, is_minimum=is_minimum)


def _list_length_problem(value: Any, bound: float, *, is_minimum: bool) -> str | None:
    return _bound_problem(len(value), bound, is_minimum=is_minimum) if isinstance(value, list) else "expected an array"


def _range_problem(value: Any, bound: Any, *, is_minimum: bool) -> str | None:
    if not is_number(bound):
        # FulcrumCore accepts a schema whose bound is not a number. With this schema, it then refuses every value.
        return "the bound in the schema must be a number"
    return _bound_problem(value, bound, is_minimum=is_minimum) if is_number(value) else "expected a number"


def _bound_problem(number: float, bound: float, *, is_minimum: bool) -> str | None:
    if is_minimum and number < bound:
        return f"{number} is less than minimum {bound}"
    if not is_minimum and number > bound:
        return f"{number} is more than maximum {bound}"
    return None


def _pattern_problem(lookups: Lookups | None, config: Json, value: Any) -> str | None:
    if isinstance(value, str) and go_regexp.matches(config["pattern"], value):
        return None
    return f"string does not match required pattern {config['pattern']}"


def _enum_problem(lookups: Lookups | None, config: Json, value: Any) -> str | None:
    is_listed = any(type(value) is type(item) and value == item for item in config["values"])
    return None if is_listed else f"value is not one of {config['values']}"


def _option_problem(lookups: Lookups | None, config: Json, value: Any) -> str | None:
    # config["value"] is an option type.
    return lookups.option_problem(config["value"], value) if lookups else None


def _reference_problem(lookups: Lookups | None, config: Json, value: Any) -> str | None:
    return lookups.reference_problem(config, value) if lookups else None


VALIDATORS: dict[str, Callable[[Lookups | None, Json, Any], str | None]] = {
    "minLength": lambda _, config, value: _string_length_problem(value, config["value"], is_minimum=True),
    "maxLength": lambda _, config, value: _string_length_problem(value, config["value"], is_minimum=False),
    "minItems": lambda _, config, value: _list_length_problem(value, config["value"], is_minimum=True),
    "maxItems": lambda _, config, value: _list_length_problem(value, config["value"], is_minimum=False),
    "min": lambda _, config, value: _range_problem(value, config["value"], is_minimum=True),
    "max": lambda _, config, value: _range_problem(value, config["value"], is_minimum=False),
    "pattern": _pattern_problem,
    "enum": _enum_problem,
    "serviceOption": _option_problem,
    "serviceReference": _reference_problem,
}


def combination_problem(validators: list[Json], properties: Json) -> str | None:
    """Run the validators that compare several properties. Return the first problem, or None."""
    for validator in validators:
        names = validator["config"]["properties"]
        names_with_value = [name for name in names if properties.get(name) is not None]
        if validator["type"] == "exactlyOne" and len(names_with_value) != 1:
            return f"exactly one of {names} must be provided"
        values = [json.dumps(properties[name], sort_keys=True) for name in names_with_value]
        if validator["type"] == "uniqueValues" and len(set(values)) != len(values):
            return f"properties {names} must have unique values"
    return None
