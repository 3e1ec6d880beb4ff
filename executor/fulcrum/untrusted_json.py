"""Parses untrusted JSON: limits its depth and its numbers, and rejects values that cannot be stored."""

from __future__ import annotations

import json
import math
import re
from typing import Any

#: Recursive code that handles the values later (database, redaction, Ansible) would fail on deeper JSON.
MAX_JSON_DEPTH = 64
#: A longer whole number exceeds every float.
_MAX_DIGITS = 400
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[{\]}]', re.DOTALL)


def parse_json(content: bytes) -> Any:
    """Parse JSON. A part nested too deeply, or a number too large, becomes a value that `check_storable` rejects.

    The other parts are parsed as usual: one invalid job must not hide the other jobs. Raises ValueError for text that
    is not JSON.
    """
    text = content.decode("utf-8-sig")
    # The depth is checked before parsing: at Python's recursion limit, even the handling of the RecursionError fails.
    is_deep = text.count("[") + text.count("{") > MAX_JSON_DEPTH
    return _parse(_with_limited_depth(text) if is_deep else text)


def _parse(text: str) -> Any:
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < _MAX_DIGITS else math.inf)


def _with_limited_depth(text: str) -> str:
    """Return the text with each part that is nested too deeply replaced by NaN."""
    kept: list[str] = []
    depth, copied_to = 0, 0
    for token in _JSON_TOKEN.finditer(text):
        if token[0] in "[{":
            if depth == MAX_JSON_DEPTH:
                kept.append(text[copied_to : token.start()] + "NaN")
            depth += 1
        elif token[0] in "]}":
            depth -= 1
            if depth == MAX_JSON_DEPTH:
                copied_to = token.end()
    if depth:
        raise ValueError("JSON with unbalanced brackets")
    return "".join(kept) + text[copied_to:]


def check_storable(value: Any) -> Any:
    """Return the value. Raises ValueError if the database, JSON or Ansible could not hold it."""
    level, depth = [value], 0
    while level:
        if depth >= MAX_JSON_DEPTH:
            raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
        for item in level:
            _check_scalar(item)
        level = [inner for item in level for inner in _children(item)]
        depth += 1
    return value


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    return item if isinstance(item, list) else []


def _check_scalar(item: Any) -> None:
    if isinstance(item, float) and not math.isfinite(item):
        raise ValueError("a number that is not finite")
    if isinstance(item, str) and ("\x00" in item or _LONE_SURROGATE.search(item)):
        raise ValueError("text with characters that cannot be stored")
