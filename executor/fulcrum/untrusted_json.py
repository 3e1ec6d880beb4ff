"""Parses JSON from other programs, and rejects what is too deep, too large, or cannot be stored."""

from __future__ import annotations

import json
import math
import re
from typing import Any

#: Maximum depth of nested JSON. The database, the redactor and Ansible process values recursively, and would fail on
#: deeper JSON.
MAX_JSON_DEPTH = 64
#: A whole number with this many digits is larger than every float.
_TOO_MANY_DIGITS = 400
#: Matches one half of a UTF-16 surrogate pair. A half cannot be encoded in UTF-8.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
#: Matches one string, or one bracket outside of strings. A string whose closing quote is missing is matched, too, up to
#: the end of the text. If it were not matched, the search would be repeated from each later quote, which could take
#: minutes. The group is the closing quote.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+(")?|[\[{\]}]', re.DOTALL)


def parse_json(content: bytes) -> Any:
    """Parse JSON. A part that is nested too deeply becomes NaN, and a whole number that is too large becomes infinity.

    `check_storable` later rejects NaN and infinity. The text around them is parsed as usual, so one invalid job in a
    list does not affect the other jobs. Raises ValueError if the text is not JSON.
    """
    text = content.decode("utf-8-sig")
    # The depth is limited before the JSON is parsed. Catching RecursionError is no alternative, because at Python's
    # recursion limit even the code that handles the exception may fail.
    may_be_too_deep = text.count("[") + text.count("{") > MAX_JSON_DEPTH
    if may_be_too_deep:
        text = _with_limited_depth(text)
    return json.loads(text, parse_int=_parse_int)


def _parse_int(digits: str) -> int | float:
    """Return a whole number; infinity if it has too many digits."""
    return int(digits) if len(digits) < _TOO_MANY_DIGITS else math.inf


def _with_limited_depth(text: str) -> str:
    """Return the text with each part that is nested too deeply replaced by NaN."""
    parts: list[str] = []
    depth = 0
    uncopied_start = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        string_or_bracket = match[0]
        if string_or_bracket[0] == '"':
            if match[1] is None:
                raise ValueError("JSON with a string that is not closed")
        elif string_or_bracket in "[{":
            if depth == MAX_JSON_DEPTH:
                parts.append(text[uncopied_start : match.start()] + "NaN")
            depth += 1
        else:
            depth -= 1
            if depth == MAX_JSON_DEPTH:
                uncopied_start = match.end()
    if depth:
        raise ValueError("JSON with unbalanced brackets")
    return "".join(parts) + text[uncopied_start:]


def check_storable(value: Any) -> Any:
    """Return the value unchanged. Raises ValueError if the database cannot store it or JSON cannot represent it."""
    values_of_level = [value]
    depth = 0
    while values_of_level:
        if depth >= MAX_JSON_DEPTH:
            raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
        for item in values_of_level:
            _check_scalar(item)
        values_of_level = [child for item in values_of_level for child in _children(item)]
        depth += 1
    return value


def _children(item: Any) -> list[Any]:
    """Return the keys and values of a dict, or the items of a list. Any other value has no children."""
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    return item if isinstance(item, list) else []


def _check_scalar(item: Any) -> None:
    """Raise ValueError for NaN, for infinity, and for text with a NUL character or a lone surrogate."""
    if isinstance(item, float) and not math.isfinite(item):
        raise ValueError("a number that is not finite")
    if isinstance(item, str) and ("\x00" in item or _LONE_SURROGATE.search(item)):
        raise ValueError("text with characters that cannot be stored")
