"""Prints text for operators and JSON for scripts, without secrets and terminal control sequences.

Text from outside (action names, error messages, a playbook's output) is printed only through `sanitized`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from executor.redaction import redactor
from executor.views.text import sanitized, to_json_types


def show_json(document: Any) -> None:
    """Print one JSON document. It has no terminal control sequence.

    `json.dumps` escapes control characters, and all characters outside ASCII.
    """
    print(json_text(document))


def json_text(document: Any) -> str:
    """Return the document as JSON text without secrets."""
    return json.dumps(redactor.redact_value(to_json_types(document)), indent=2)


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
