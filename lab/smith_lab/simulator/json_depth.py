"""Limits the depth of nested JSON before Python's decoder reads it.

Go's `encoding/json` reads JSON that is nested 10,000 deep, and refuses deeper JSON. Python's decoder ends with
RecursionError at a tenth of this depth.
"""

from __future__ import annotations

import re

#: The greatest depth that Go reads.
MAX_GO_DEPTH = 10_000
#: A value at a greater depth becomes `null`. The functions that process a decoded body are recursive, and would fail on
#: deeper values. The agent sends no value so deep, and accepts no value deeper than 64.
MAX_KEPT_DEPTH = 150
#: Matches one string, with or without its closing quote, or one bracket outside of strings.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{\]}]', re.DOTALL)


def limit_depth(text: str) -> str:
    """Return the text. In its first JSON value, `null` replaces each value that is deeper than MAX_KEPT_DEPTH.
    Raises ValueError if the first JSON value is deeper than MAX_GO_DEPTH. The syntax of replaced values is not checked.
    """
    if text.count("[") + text.count("{") <= MAX_KEPT_DEPTH:
        return text
    kept_parts: list[str] = []
    depth = 0
    uncopied_start = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        bracket = match[0]
        if bracket in ("[", "{"):
            if depth == MAX_GO_DEPTH:
                raise ValueError(f"invalid character '{bracket}' exceeded max depth")
            if depth == MAX_KEPT_DEPTH:
                kept_parts.append(text[uncopied_start : match.start()] + "null")
            depth += 1
        elif bracket in ("]", "}"):
            depth -= 1
            if depth == MAX_KEPT_DEPTH:
                uncopied_start = match.end()
        if depth <= 0:
            break  # Go does not read the text after the first value
    return "".join(kept_parts) + ("" if depth > MAX_KEPT_DEPTH else text[uncopied_start:])
