"""Parses untrusted JSON: limits its depth and the size of its numbers, and rejects values that cannot be stored."""

from __future__ import annotations

import json
import math
import re
from typing import Any

#: Maximum depth. The database, the redaction and Ansible process values recursively, and would fail on deeper JSON.
MAX_JSON_DEPTH = 64
#: A whole number with more digits than this is larger than every float.
_MAX_DIGITS = 400
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
#: A string, or one bracket outside of strings.
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[{\]}]', re.DOTALL)


def parse_json(content: bytes) -> Any:
    """Parse JSON. A part that is nested too deeply, and a number that is too large, become NaN or infinity.

    The rest of the text is parsed as usual, so that one invalid job in a list does not hide the other jobs. Afterwards
    `check_storable` rejects NaN and infinity. Raises ValueError if the text is not JSON.
    """
    text = content.decode("utf-8-sig")
    # The depth is limited before parsing, and not by catching RecursionError: at Python's recursion limit, even the
    # code that handles the exception may fail. The number of brackets is never less than the depth.
    is_deep = text.count("[") + text.count("{") > MAX_JSON_DEPTH
    return _parse(_with_limited_depth(text) if is_deep else text)


def _parse(text: str) -> Any:
    """Parse JSON of limited depth. Whole numbers with too many digits become infinity."""
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
    """Return the value unchanged. Raises ValueError if the database, JSON or Ansible could not store it."""
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
    """Return the keys and values of a dict, or the items of a list; no items for any other value."""
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    return item if isinstance(item, list) else []


def _check_scalar(item: Any) -> None:
    """Raise ValueError for a number that is NaN or infinity, and for text with NUL or a lone surrogate."""
    if isinstance(item, float) and not math.isfinite(item):
        raise ValueError("a number that is not finite")
    if isinstance(item, str) and ("\x00" in item or _LONE_SURROGATE.search(item)):
        raise ValueError("text with characters that cannot be stored")
