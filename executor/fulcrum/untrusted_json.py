"""Reads JSON from FulcrumCore with limits: depth, size of numbers, and characters that cannot be stored."""

from __future__ import annotations

import json
import math
import re
from typing import Any

#: Deeper JSON serves nobody, and recursive code after us (database, redaction, Ansible) would break on it.
MAX_JSON_DEPTH = 64
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[{\]}]', re.DOTALL)


def parse_json(content: bytes) -> Any:
    """Parse foreign JSON. Too deep a part, or a number beyond all measure, becomes one that `storable` refuses.

    One poisoned job must not hide the others, so the answer as a whole stays readable.
    Raises: ValueError.
    """
    text = content.decode("utf-8-sig")
    # Looked at before: whatever Python cleans up while it is at its recursion limit fails there, too.
    is_deep = text.count("[") + text.count("{") > MAX_JSON_DEPTH
    return _parse(_flattened(text) if is_deep else text)


def _parse(text: str) -> Any:
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 400 else math.inf)


def _flattened(text: str) -> str:
    """Replace what is nested too deeply by NaN."""
    kept: list[str] = []
    depth, copied = 0, 0
    for token in _JSON_TOKEN.finditer(text):
        if token[0] in "[{":
            if depth == MAX_JSON_DEPTH:
                kept.append(text[copied : token.start()] + "NaN")
            depth += 1
        elif token[0] in "]}":
            depth -= 1
            if depth == MAX_JSON_DEPTH:
                copied = token.end()
    if depth:
        raise ValueError("JSON with unbalanced brackets")
    return "".join(kept) + text[copied:]


def storable(value: Any) -> Any:
    """Return the value, or raise ValueError for what a database, JSON or Ansible could not carry."""
    level, depth = [value], 0
    while level:
        if depth >= MAX_JSON_DEPTH:
            raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
        for item in level:
            _check_scalar(item)
        level = [inner for item in level for inner in _inside(item)]
        depth += 1
    return value


def _inside(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    return item if isinstance(item, list) else []


def _check_scalar(item: Any) -> None:
    if isinstance(item, float) and not math.isfinite(item):
        raise ValueError("a number that is not finite")
    if isinstance(item, str) and ("\x00" in item or _LONE_SURROGATE.search(item)):
        raise ValueError("text with characters that cannot be stored")
