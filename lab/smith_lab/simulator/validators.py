"""Checks of one value: the declared type, the validators of a property, and the validators across properties.

A validator returns the text of a problem, or None.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from smith_lab.simulator import go_regexp
from smith_lab.simulator.problems import PropertyErrors
from smith_lab.simulator.rows import Json


class Lookups(Protocol):
    """What validators look up in the store. Each method returns a problem, or None."""

    def option_problem(self, option_type: str, value: Any) -> str | None: ...

    def reference_problem(self, config: Json, value: Any) -> str | None: ...


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_type(name: str, value: Any, kind: str) -> None:
    """Raise PropertyErrors unless the value is of the declared type; 2.0 is an integer, true is not a number."""
    if not _TYPE_CHECKS[kind](value):
        raise refusal(f"{name}: expected {kind}, got {json.dumps(value)[:40]}")


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


def refusal(text: str) -> PropertyErrors:
    """Return the error of one property, without its name."""
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


def _pattern_problem(lookups: Lookups | None, config: Json, value: Any) -> str | None:
    if isinstance(value, str) and go_regexp.matches(config["pattern"], value):
        return None
    return f"string does not match required pattern {config['pattern']}"


def _enum_problem(lookups: Lookups | None, config: Json, value: Any) -> str | None:
    known = any(type(value) is type(item) and value == item for item in config["values"])
    return None if known else f"value is not one of {config['values']}"


def _option_problem(lookups: Lookups | None, config: Json, value: Any) -> str | None:
    return lookups.option_problem(config["value"], value) if lookups else None


def _reference_problem(lookups: Lookups | None, config: Json, value: Any) -> str | None:
    return lookups.reference_problem(config, value) if lookups else None


VALIDATORS: dict[str, Callable[[Lookups | None, Json, Any], str | None]] = {
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


def cross_field_problem(validators: list[Json], result: Json) -> str | None:
    for item in validators:
        names = item["config"]["properties"]
        given = [name for name in names if result.get(name) is not None]
        if item["type"] == "exactlyOne" and len(given) != 1:
            return f"exactly one of {names} must be provided"
        values = [json.dumps(result[name], sort_keys=True) for name in given]
        if item["type"] == "uniqueValues" and len(set(values)) != len(values):
            return f"properties {names} must have unique values"
    return None
