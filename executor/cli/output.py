"""Prints text for operators and JSON for scripts, without secrets and terminal control sequences.

Text from outside (action names, error messages, a playbook's output) is printed only through `sanitized`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from executor.redaction import redactor

#: The length of a shortened id in tables. The first eight characters of a UUID are usually unique.
SHORT_ID_LENGTH = 8
#: A terminal control sequence that sets a colour.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def sanitized(text: str, *, keep_lines: bool = False) -> str:
    """Return the text without secrets, and with every control character and invisible character escaped.

    The escape character, for example, becomes the text `\\x1b`. With `keep_lines`, line breaks and tabs stay, and
    colour sequences are removed instead of escaped.
    """
    if keep_lines:
        text = _COLOURS.sub("", text.replace("\r\n", "\n"))
    text = redactor.redact(text)
    if text.isprintable():
        return text
    kept = "\n\t" if keep_lines else ""
    return "".join(char if char.isprintable() or char in kept else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def show_json(document: Any) -> None:
    """Print one JSON document in ASCII, so that it has no terminal control sequence."""
    print(json.dumps(redactor.redact_value(jsonable(document)), indent=2))


def jsonable(value: Any) -> Any:
    """Return the value converted to types that JSON has. Times and other types without a JSON form become text."""
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def show_text(text: str) -> None:
    """Print the text, without secrets and control sequences. Line breaks stay."""
    print(sanitized(text, keep_lines=True))


def show_outcome(text: str, *, as_json: bool, **fields: Any) -> None:
    """Print what the command has done: the text for operators, or the fields as JSON."""
    if as_json:
        show_json(fields)
    else:
        show_text(text)


def show_error(text: str) -> None:
    """Print the text on stderr, with `smith:` before every line."""
    for line in text.splitlines() or [""]:
        print(f"smith: {sanitized(line)}", file=sys.stderr)


def iso(moment: datetime) -> str:
    """Return the time as text for JSON, in UTC with milliseconds, for example `2026-11-23T08:15:30.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def elapsed(moment: datetime | None, now: datetime) -> str | None:
    """Return the time from `moment` to `now` in one unit, for example `42s`, `3m`, `5h` or `12d`.

    The unit is the largest of which at least two have passed. Without a moment, None is returned.
    """
    if moment is None:
        return None
    seconds = max(int((now - moment).total_seconds()), 0)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size * 2:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def short(identifier: str | None) -> str | None:
    """Return the beginning of the id, for a table."""
    return identifier[:SHORT_ID_LENGTH] if identifier else None
