"""Parses a query string as Go does."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def parse(raw_query: bytes) -> list[tuple[str, str]]:
    """Return the names and values of the parameters.

    As in Go, a parameter that contains `;` or a malformed escape is omitted.
    """
    pairs = [pair for pair in raw_query.decode("latin-1").split("&") if pair]
    return [
        (unquote_plus(name), unquote_plus(value))
        for name, _, value in (
            pair.partition("=") for pair in pairs if ";" not in pair and not _BAD_ESCAPE.search(pair)
        )
    ]
