"""Formats values from the database as text, for the commands and the web pages.

Callers call `sanitized` for text from outside, such as action names, error messages and a playbook's output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from executor.redaction import redactor

#: The length of a shortened id in tables. The first eight characters of a UUID are usually unique.
SHORT_ID_LENGTH = 8
#: Matches a terminal control sequence that sets a colour.
_COLOUR_SEQUENCE = re.compile(r"\x1b\[[0-9;]*m")


def sanitized(text: str, *, keep_whitespace: bool = False) -> str:
    """Return the text without secrets, and with every control character and invisible character escaped.

    For example, the control character ESC becomes the text `\\x1b`. With `keep_whitespace`, line breaks and tabs are
    kept, and colour sequences are removed. The secrets are the values that `redactor` knows, for
    example tokens from the settings.
    """
    if keep_whitespace:
        text = _COLOUR_SEQUENCE.sub("", text.replace("\r\n", "\n"))
    text = redactor.redact(text)
    if text.isprintable():
        return text
    unescaped_controls = "\n\t" if keep_whitespace else ""
    return "".join(char if char.isprintable() or char in unescaped_controls else _escape(char) for char in text)


def count_with_noun(count: int, noun: str) -> str:
    """Return a number with its noun in the singular or in the plural: `1 running job`, `2 running jobs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def json_text(document: Any) -> str:
    """Return the document as JSON text without secrets."""
    return json.dumps(redactor.redact_value(to_json_types(document)), indent=2)


def to_json_types(value: Any) -> Any:
    """Convert the value to types that JSON has. Times, and objects for which JSON has no type, become text."""
    if isinstance(value, datetime):
        return iso_utc(value)
    if isinstance(value, Mapping):
        return {str(key): to_json_types(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_types(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def iso_utc(moment: datetime) -> str:
    """Return the time as text for JSON, in UTC with milliseconds, for example `2026-11-23T08:15:30.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def elapsed_text(moment: datetime | None, now: datetime) -> str | None:
    """Return the time from `moment` to `now` in one unit, for example `42s`, `3m`, `5h` or `12d`.

    The unit is the largest unit that the time contains at least twice: 119 minutes are `119m`, and 120 minutes are
    `2h`. Returns None if `moment` is None.
    """
    if moment is None:
        return None
    seconds = max(int((now - moment).total_seconds()), 0)
    for seconds_per_unit, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= seconds_per_unit * 2:
            return f"{seconds // seconds_per_unit}{unit}"
    return f"{seconds}s"


def short_id(identifier: str | None) -> str | None:
    """Return the first SHORT_ID_LENGTH characters of the id, for a table."""
    return identifier[:SHORT_ID_LENGTH] if identifier else None
