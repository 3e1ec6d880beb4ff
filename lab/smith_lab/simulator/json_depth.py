"""Limits the depth of nested JSON before Python's decoder reads it.

FulcrumCore is a Go program. Go's `encoding/json` reads JSON that is nested 10,000 deep, and refuses deeper JSON.
Python's decoder ends with RecursionError at a tenth of this depth.
"""

from __future__ import annotations

import re

#: The greatest depth of JSON that Go reads.
MAX_GO_DEPTH = 10_000
#: The greatest depth that the simulator keeps. A deeper value is replaced by `null`, because the functions that process
#: a decoded body are recursive and would fail.
MAX_KEPT_DEPTH = 150
#: Matches one string, with or without its closing quote, or one bracket outside of strings.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{\]}]', re.DOTALL)


def replace_deep_values(text: str) -> str:
    """Return the JSON text with `null` in place of each object or list that is nested in MAX_KEPT_DEPTH others.

    Only the first JSON value of the text is changed. Raises ValueError if it is nested deeper than MAX_GO_DEPTH. The
    syntax of replaced values is not checked.
    """
    if text.count("[") + text.count("{") <= MAX_KEPT_DEPTH:
        return text
    kept_parts: list[str] = []
    depth = 0
    uncopied_start = 0  # start of the text after the latest replaced value
    for match in _STRING_OR_BRACKET.finditer(text):
        string_or_bracket = match[0]
        if string_or_bracket in ("[", "{"):
            if depth == MAX_GO_DEPTH:
                raise ValueError(f"invalid character '{string_or_bracket}' exceeded max depth")
            if depth == MAX_KEPT_DEPTH:
                kept_parts.append(text[uncopied_start : match.start()] + "null")
            depth += 1
        elif string_or_bracket in ("]", "}"):
            depth -= 1
            if depth == MAX_KEPT_DEPTH:
                uncopied_start = match.end()
        if depth <= 0:
            break  # Go does not read the text after the first value
    return "".join(kept_parts) + ("" if depth > MAX_KEPT_DEPTH else text[uncopied_start:])
