"""Prints text for operators and JSON for scripts, without secrets and terminal control sequences.

Text from outside (action names, error messages, a playbook's output) is printed only through `sanitized` or
`json_text`. Both replace secrets and escape control characters.
"""

from __future__ import annotations

import sys
from typing import Any

from executor.views.text import json_text, sanitized


def show_json(document: Any) -> None:
    """Print one JSON document, without secrets and terminal control sequences."""
    print(json_text(document))


def show_text(text: str) -> None:
    """Print the text, without secrets and control sequences. Line breaks stay."""
    print(sanitized(text, keep_whitespace=True))


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
