"""Decodes request bodies as Go does.

Go reads only the first JSON value of a body, ignores unknown members and refuses values of a wrong type.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from smith_lab.simulator import clock
from smith_lab.simulator.problems import bad_request
from smith_lab.simulator.rows import Json

#: The members that an endpoint accepts in a body. It maps a member's name to its kind, which is a key of `_READERS`.
Fields = Mapping[str, str]


def decode(raw: bytes, fields: Fields) -> Json:
    """Return the members of a body that are in `fields`. A member that is `null` counts as absent.

    Raises a 400 (Problem) for an empty body, for a body that is not an object, and for a value of a wrong type.
    """
    value = _first_value(raw)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_request(f"json: cannot unmarshal {type(value).__name__} into an object")
    body: Json = {}
    # Go ignores case in member names. If two members have the same name except for case, the last one counts.
    exact_names = {name.lower(): name for name in fields}
    for key, member in value.items():
        name = key if key in fields else exact_names.get(key.lower())
        if name is not None and member is not None:
            body[name] = _decode_member(name, fields[name], member)
    return body


def _first_value(raw: bytes) -> Any:
    """Return the first JSON value of a body. Raises a 400 if the body does not start with one."""
    text = raw.decode("utf-8", errors="replace").lstrip(" \t\r\n")
    if not text:
        raise bad_request("invalid JSON: EOF")
    try:
        return _DECODER.raw_decode(text)[0]
    except (ValueError, RecursionError) as exc:
        raise bad_request(f"invalid JSON: {exc}") from exc


def _parse_finite_float(text: str) -> float:
    """Refuse a number that is too large for a float, such as 1e999. Python's decoder makes it infinite."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"cannot unmarshal number {text}")
    return number


def _refuse_constant(text: str) -> Any:
    """Refuse NaN and Infinity, which Python's decoder accepts."""
    raise ValueError(f"invalid character in {text}")


_DECODER = json.JSONDecoder(parse_float=_parse_finite_float, parse_constant=_refuse_constant)


def _decode_member(name: str, kind: str, value: Any) -> Any:
    try:
        return _READERS[kind](value)
    except (TypeError, ValueError) as exc:
        raise bad_request(f"json: cannot unmarshal member {name} into {kind}") from exc


def _reader_of_types(*types: type) -> Callable[[Any], Any]:
    """Return a function that returns a value of one of these types, and raises TypeError for any other value.

    As in Go, and unlike in Python, a bool is not an int.
    """

    def read(value: Any) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise TypeError
        return value

    return read


def _read_strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError
    return value


def _read_uuids(value: Any) -> list[str]:
    return [read_uuid(item) for item in _reader_of_types(list)(value)]


def read_uuid(value: Any) -> str:
    """Return the canonical text of a UUID. Raises TypeError or ValueError."""
    if not isinstance(value, str):
        raise TypeError
    return str(uuid.UUID(value))


_READERS: dict[str, Callable[[Any], Any]] = {
    "string": _reader_of_types(str),
    "integer": _reader_of_types(int),
    "number": _reader_of_types(int, float),
    "boolean": _reader_of_types(bool),
    "object": _reader_of_types(dict),
    "array": _reader_of_types(list),
    "strings": _read_strings,
    "uuid": read_uuid,
    "uuids": _read_uuids,
    "time": lambda value: clock.from_text(_reader_of_types(str)(value)),
    "any": lambda value: value,
}
