"""Parses JSON from other programs, and detects values that are too deep, too large, or cannot be stored."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

#: Maximum depth of nested JSON. The database, the redactor (it masks secrets) and Ansible process values recursively
#: and would fail on deeper JSON.
MAX_JSON_DEPTH = 64
#: Maximum number of values in one text, so that the parsed text does not take too much memory: a value takes up to 240
#: bytes as a Python object. The commas and opening brackets in the text are counted instead of the values.
MAX_JSON_VALUES = 250_000
#: A list is large if its text is larger than MAX_ITEM_BYTES, or may have more than MAX_JSON_VALUES values. A large list
#: is parsed item by item. Each of its items has at most this many values and bytes; a job has a few hundred values.
MAX_ITEM_VALUES = 10_000
MAX_ITEM_BYTES = 12 * 1024 * 1024
#: A whole number with this many digits is larger than every float.
_TOO_MANY_DIGITS = 400
#: Matches one half of a UTF-16 surrogate pair. A half cannot be encoded in UTF-8.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
#: Matches one string, or one bracket outside of strings. A string whose closing quote is missing is matched, too, up to
#: the end of the text. If it were not matched, the search would be repeated from each later quote, which could take
#: minutes. The group is the closing quote.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+(")?|[\[{\]}]', re.DOTALL)


#: Match an empty list, and the beginning of a list. A byte order mark may precede the list.
_EMPTY_LIST = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\[[ \t\r\n]*\][ \t\r\n]*")
_LIST_START = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\[")
_QUOTE, _COMMA, _OPENING_BRACKETS = ord('"'), ord(","), frozenset(b"[{")
#: Like _STRING_OR_BRACKET. It also matches a comma outside of strings.
_STRING_BRACKET_OR_COMMA = re.compile(r'"(?:[^"\\]|\\.)*+(")?|[\[{\]},]', re.DOTALL)
#: Like _STRING_BRACKET_OR_COMMA, for bytes.
_STRING_BRACKET_OR_COMMA_IN_BYTES = re.compile(rb'"(?:[^"\\]|\\.)*+(")?|[\[{\]},]', re.DOTALL)


def parse_json(content: bytes) -> Any:
    """Parse JSON. A part that is nested too deeply becomes NaN, and a whole number that is too large becomes infinity.

    `check_storable` later rejects NaN and infinity. The text around them is parsed as usual, so one invalid job in a
    list does not affect the other jobs. Raises ValueError if the text is not JSON, or has more than MAX_JSON_VALUES
    values.
    """
    text = content.decode("utf-8-sig")
    # The depth is limited before the JSON is parsed. Catching RecursionError is no alternative, because at Python's
    # recursion limit even the code that handles the exception may fail.
    may_be_too_deep = text.count("[") + text.count("{") > MAX_JSON_DEPTH
    if may_be_too_deep:
        text = _with_limited_depth(text)
    if len(text) > MAX_JSON_VALUES:
        _check_value_count(text)
    return json.loads(text, parse_int=_parse_int)


def parse_json_list(content: bytes, max_items: int) -> tuple[list[Any], int]:
    """Parse a JSON list. Return its first `max_items` items, and the number of further items.

    A large list is parsed item by item, so that one item can neither make the other items unreadable nor exhaust the
    memory. In place of an item that is not JSON or is too large, the result has a ValueError. A small list is parsed as
    a whole. Raises ValueError if the text is not a list, or if a small list contains an item that is not JSON.
    """
    if len(content) <= MAX_ITEM_BYTES and not _may_have_too_many_values(content):
        value = parse_json(content)
        if not isinstance(value, list):
            raise ValueError("the JSON is not a list")
        return value[:max_items], max(len(value) - max_items, 0)
    if _EMPTY_LIST.fullmatch(content):
        return [], 0
    items: list[Any] = []
    unread_count = 0
    for start, end, value_count in _item_positions(content):
        if len(items) < max_items:
            items.append(_parse_item(content, start, end, value_count))
        else:
            unread_count += 1
    return items, unread_count


def _parse_item(content: bytes, start: int, end: int, value_count: int) -> Any:
    """Return the item at this position, or the ValueError that says why it cannot be used."""
    if end - start > MAX_ITEM_BYTES or value_count > MAX_ITEM_VALUES:
        return ValueError("too large")
    try:
        return parse_json(content[start:end])
    except ValueError as exc:
        return exc


def _item_positions(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the start, the end and the number of values of each item of a list.

    Raises ValueError if the text is not a list. The items are not parsed, so an item may be invalid JSON.
    """
    if not _LIST_START.match(content):
        raise ValueError("the JSON is not a list")
    start, depth, value_count = 0, 0, 0
    for match in _STRING_BRACKET_OR_COMMA_IN_BYTES.finditer(content):
        byte = content[match.start()]
        if byte == _QUOTE:
            if match[1] is None:
                raise ValueError("the JSON has a string that is not closed")
            continue
        depth += 1 if byte in _OPENING_BRACKETS else 0 if byte == _COMMA else -1
        value_count += byte in _OPENING_BRACKETS or byte == _COMMA
        if depth == 1 and not start:
            start = match.end()
        elif not depth or (depth == 1 and byte == _COMMA):
            yield start, match.start(), value_count
            start, value_count = match.end(), 0
        if not depth:
            if content[match.end() :].strip():
                raise ValueError("the JSON has text after the list")
            return
    raise ValueError("the JSON has unbalanced brackets")


def _may_have_too_many_values(content: bytes) -> bool:
    """Return whether there are more than MAX_JSON_VALUES commas and opening brackets, in strings and outside."""
    if len(content) <= MAX_JSON_VALUES:
        return False
    return content.count(b",") + content.count(b"[") + content.count(b"{") > MAX_JSON_VALUES


def _check_value_count(text: str) -> None:
    """Raise ValueError if the text has more than MAX_JSON_VALUES commas and opening brackets outside of strings."""
    if text.count(",") + text.count("[") + text.count("{") <= MAX_JSON_VALUES:
        return
    matched_texts = (match[0] for match in _STRING_BRACKET_OR_COMMA.finditer(text))
    if sum(len(matched_text) == 1 and matched_text in ",[{" for matched_text in matched_texts) > MAX_JSON_VALUES:
        raise ValueError(f"the JSON has more than {MAX_JSON_VALUES} values")


def _parse_int(digits: str) -> int | float:
    """Return a whole number; infinity if it has too many digits."""
    return int(digits) if len(digits) < _TOO_MANY_DIGITS else math.inf


def _with_limited_depth(text: str) -> str:
    """Return the text with each part that is nested too deeply replaced by NaN."""
    parts: list[str] = []
    depth = 0
    next_part_start = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        string_or_bracket = match[0]
        if string_or_bracket[0] == '"':
            if match[1] is None:
                raise ValueError("the JSON has a string that is not closed")
        elif string_or_bracket in "[{":
            if depth == MAX_JSON_DEPTH:
                parts.append(text[next_part_start : match.start()] + "NaN")
            depth += 1
        else:
            depth -= 1
            if depth == MAX_JSON_DEPTH:
                next_part_start = match.end()
    if depth:
        raise ValueError("the JSON has unbalanced brackets")
    return "".join(parts) + text[next_part_start:]


def check_storable(value: Any) -> Any:
    """Return the value unchanged. Raises ValueError if the database cannot store it.

    It cannot store a value that is nested too deeply or contains NaN, infinity, a NUL character or a lone surrogate.
    """
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
