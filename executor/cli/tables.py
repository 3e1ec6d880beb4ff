"""Prints tables, fields, headings and documents for operators with rich. Text is never parsed as rich's markup."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from executor.cli.output import jsonable, sanitized, show_text
from executor.redaction import redactor

#: The line width when stdout is not a terminal. It is so large that no line of the output for a script is wrapped.
WIDE = 100_000
#: The colour of a cell by the cell's text. Other cells have no colour.
STYLES = {
    "pending": "yellow",
    "reserved": "yellow",
    "due": "yellow",
    "missing": "yellow",
    "warning": "yellow",
    "processing": "cyan",
    "running": "cyan",
    "completed": "green",
    "active": "green",
    "successful": "green",
    "ok": "green",
    "changed": "green",
    "found": "green",
    "made": "green",
    "differs": "yellow",
    "would be created": "yellow",
    "failed": "red",
    "wrong": "red",
    "timeout": "red",
    "unreachable": "red",
    "vm_lost": "red",
    "overdue": "red",
    "vanished": "red",
}


def show_rows(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, if_empty: str) -> None:
    """Print a table. `columns` maps keys of the rows to headings. Without rows, `if_empty` is printed instead."""
    if not rows:
        show_text(if_empty)
        return

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in columns.values():
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(cell(row.get(key)) for key in columns))
    _print(table)


def show_fields(fields: Mapping[str, Any]) -> None:
    """Print one line for each field that has a value, with the field's name and the value."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value not in (None, "", [], {}):
            table.add_row(Text(name.replace("_", " ")), cell(value))
    _print(table)


def show_heading(text: str) -> None:
    """Print a title with an empty line before it."""
    show_text("")
    _print(Text(sanitized(text), style="bold"))


def show_document(value: Any) -> None:
    """Print the value as JSON for operators: indented, and without escapes for characters outside ASCII."""
    text = json.dumps(redactor.redact_value(jsonable(value)), indent=2, ensure_ascii=False)
    _print(Text(sanitized(text, keep_lines=True)))


def cell(value: Any) -> Text:
    """Return the value as text for a cell of a table, with its colour."""
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, datetime):
        return Text(f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, (list, tuple)):
        return Text(sanitized(", ".join(str(item) for item in value)))
    text = sanitized(str(value))
    return Text(text, style=STYLES.get(text, ""))


def _print(renderable: RenderableType) -> None:
    """Print an object of rich. Spaces at the end of a line, which rich adds to fill the last column, are removed."""
    width = None if sys.stdout.isatty() else WIDE
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(renderable)
    lines: Iterable[str] = captured.get().rstrip("\n").split("\n")
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))
