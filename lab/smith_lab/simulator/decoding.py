"""Decodes the JSON bodies of requests as Go does, because FulcrumCore is a Go program.

Go reads only the first JSON value of a body, ignores unknown members and refuses values of a wrong type. The type
`Json` is a JSON object, as a dict.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from smith_lab.simulator import clock
from smith_lab.simulator.json_depth import replace_deep_values
from smith_lab.simulator.problems import bad_request
from smith_lab.simulator.rows import Json

#: The members of a body that an endpoint accepts. Maps each member's name to its type, which is a key of `_READERS`.
Fields = Mapping[str, str]


def decode(raw_body: bytes, fields: Fields) -> Json:
    """Decode the JSON object in a body. Return only the members that `fields` names. Omit members that are `null`.

    The body `null` counts as an empty object. Raises ErrorAnswer (the answer has status 400) for an empty body, for a
    body that is neither an object nor `null`, and for a member of a wrong type.
    """
    value = _read_first_value(raw_body)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_request(f"json: cannot unmarshal {type(value).__name__} into an object")
    body: Json = {}
    # Go ignores case in member names. If the names of two members differ only in case, the last member is used.
    names_by_lower_case = {name.lower(): name for name in fields}
    for key, member in value.items():
        name = key if key in fields else names_by_lower_case.get(key.lower())
        if name is not None and member is not None:
            body[name] = with_go_numbers(_decode_member(name, fields[name], member))
    return body


def with_go_numbers(value: Any) -> Any:
    """Return the value with each number in Go's form. Go reads every JSON number as a float, and writes 1.0 as 1."""
    if isinstance(value, dict):
        return {name: with_go_numbers(member) for name, member in value.items()}
    if isinstance(value, list):
        return [with_go_numbers(item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        # Go writes the shortest decimal number that parses to this float, so 12345678901234567890 loses digits.
        return int(Decimal(repr(number))) if number.is_integer() else number
    return value


def contains_nul(value: Any) -> bool:
    """Return whether a text or a member name in the value contains the character NUL, which PostgreSQL cannot store."""
    if isinstance(value, dict):
        return any("\0" in name or contains_nul(member) for name, member in value.items())
    if isinstance(value, list):
        return any(contains_nul(item) for item in value)
    return isinstance(value, str) and "\0" in value


def _read_first_value(raw_body: bytes) -> Any:
    """Return the first JSON value of a body. Raises ErrorAnswer (400) if it does not start with one."""
    text = raw_body.decode("utf-8", errors="replace").lstrip(" \t\r\n")
    if not text:
        raise bad_request("invalid JSON: EOF")
    try:
        # Python's decoder fails at deep nesting, so `null` replaces each object and list that is nested too deep.
        return _JSON_DECODER.raw_decode(replace_deep_values(text))[0]
    except (ValueError, RecursionError, OverflowError) as exc:
        raise bad_request(f"invalid JSON: {exc}") from exc


def _parse_finite_float(text: str) -> float:
    """Parse a number. Raises ValueError for a number such as 1e999, which Python's float() would turn into infinity."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"cannot unmarshal number {text}")
    return number


def _refuse_constant(text: str) -> Any:
    """Refuse NaN and Infinity, which Python's decoder accepts."""
    raise ValueError(f"invalid character in {text}")


_JSON_DECODER = json.JSONDecoder(parse_float=_parse_finite_float, parse_constant=_refuse_constant)


def _decode_member(name: str, type_name: str, value: Any) -> Any:
    try:
        return _READERS[type_name](value)
    except (TypeError, ValueError) as exc:
        raise bad_request(f"json: cannot unmarshal member {name} into {type_name}") from exc


def _make_reader(*types: type) -> Callable[[Any], Any]:
    """Return a reader: a function that returns its argument unchanged if it has one of these types.

    The reader raises TypeError for any other argument. As in Go, and unlike in Python, a bool is not an int.
    """

    def read(value: Any) -> Any:
        is_unexpected_bool = isinstance(value, bool) and bool not in types
        if not isinstance(value, types) or is_unexpected_bool:
            raise TypeError
        return value

    return read


_read_string = _make_reader(str)
_read_list = _make_reader(list)


def _read_strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError
    return value


def _read_uuids(value: Any) -> list[str]:
    return [read_uuid(item) for item in _read_list(value)]


def read_uuid(value: Any) -> str:
    """Return the canonical text of a UUID. Raises TypeError or ValueError."""
    if not isinstance(value, str):
        raise TypeError
    return str(uuid.UUID(value))


_READERS: dict[str, Callable[[Any], Any]] = {
    "string": _read_string,
    "integer": _make_reader(int),
    "number": _make_reader(int, float),
    "boolean": _make_reader(bool),
    "object": _make_reader(dict),
    "array": _read_list,
    "strings": _read_strings,
    "uuid": read_uuid,
    "uuids": _read_uuids,
    "time": lambda value: clock.time_from_text(_read_string(value)),
    "any": lambda value: value,
}
