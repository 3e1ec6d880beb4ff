"""Decodes request bodies as Go does: the first JSON value only, unknown members ignored, wrong types refused."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from smith_lab.simulator import clock
from smith_lab.simulator.problems import bad_request
from smith_lab.simulator.rows import Json

#: Member name to kind: the members that a handler may find in the body.
Fields = Mapping[str, str]


def decode(raw: bytes, fields: Fields) -> Json:
    """Return the body's known members. `null` counts as absent; an empty body is a 400."""
    value = _first_value(raw)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_request(f"json: cannot unmarshal {type(value).__name__} into an object")
    body: Json = {}
    # Go ignores case in member names. Here the exact name has priority; in Go the last one has.
    lower = {name.lower(): name for name in fields}
    for key, member in value.items():
        name = key if key in fields else lower.get(key.lower())
        if name is not None and member is not None:
            body[name] = _member(name, fields[name], member)
    return body


def _first_value(raw: bytes) -> Any:
    text = raw.decode("utf-8", errors="replace").lstrip(" \t\r\n")
    try:
        return _DECODER.raw_decode(text)[0] if text else _refuse_empty()
    except (ValueError, RecursionError) as exc:
        raise bad_request(f"invalid JSON: {exc}") from exc


def _refuse_empty() -> Any:
    raise ValueError("EOF")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"cannot unmarshal number {text}")
    return number


def _no_constant(text: str) -> Any:
    raise ValueError(f"invalid character in {text}")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant)


def _member(name: str, kind: str, value: Any) -> Any:
    try:
        return _READERS[kind](value)
    except (TypeError, ValueError) as exc:
        raise bad_request(f"json: cannot unmarshal member {name} into {kind}") from exc


def _instance(*types: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise TypeError
        return value

    return read


def _strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError
    return value


def _uuids(value: Any) -> list[str]:
    return [read_uuid(item) for item in _instance(list)(value)]


def read_uuid(value: Any) -> str:
    """Return the canonical text of a UUID. Raises TypeError or ValueError."""
    if not isinstance(value, str):
        raise TypeError
    return str(uuid.UUID(value))


_READERS: dict[str, Callable[[Any], Any]] = {
    "string": _instance(str),
    "integer": _instance(int),
    "number": _instance(int, float),
    "boolean": _instance(bool),
    "object": _instance(dict),
    "array": _instance(list),
    "strings": _strings,
    "uuid": read_uuid,
    "uuids": _uuids,
    "time": lambda value: clock.from_text(_instance(str)(value)),
    "any": lambda value: value,
}
