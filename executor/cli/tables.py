"""Prints tables, fields, headings and JSON for operators. rich never interprets the printed text as markup.

The import of rich takes long, and only output on a terminal needs rich. So the functions that need rich import it.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from executor.cli.output import show_text
from executor.cli.table_layout import COLUMN_GAP, MIN_FREE_TEXT_WIDTH, columns_that_fit, free_text_widths
from executor.redaction import redactor
from executor.views.text import sanitized, to_json_types

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

#: The line width in characters for rich. It is so large that rich wraps no line, because `wrap_at_spaces` wraps texts.
UNWRAPPED_LINE_WIDTH = 100_000
#: The spaces at the end of a line, even if colour sequences are between or after the spaces.
_TRAILING_SPACES = re.compile(r" +(?=(?:\x1b\[[0-9;]*m| )*$)")
#: The text of a cell without a value.
NO_VALUE = "-"
#: A field with one of these values is not shown.
EMPTY_FIELD_VALUES: tuple[object, ...] = (None, "", [], {}, ())
#: The padding of a cell: top, right, bottom and left, in characters.
CELL_PADDING = (0, COLUMN_GAP, 0, 0)
#: The colour of a cell, keyed by the cell's text, which is a status, usually of a job, a report, a run, an Ansible task
#: or a mapping. A cell with another text has no colour.
COLOUR_BY_TEXT = {
    "pending": "yellow",
    "reserved": "yellow",
    "due": "yellow",  # a report that FulcrumCore has not acknowledged
    "missing": "yellow",  # a required setting that has no value
    "warning": "yellow",  # a check of `smith doctor`
    "processing": "cyan",
    "running": "cyan",
    "completed": "green",
    "active": "green",
    "successful": "green",
    "ok": "green",
    "changed": "green",
    # The next four are statuses of an object in FulcrumCore, as `smith bootstrap core` prints them.
    "found": "green",
    "made": "green",
    "differs": "yellow",
    "would be created": "yellow",
    "failed": "red",
    "timeout": "red",
    "unreachable": "red",
    "vm_lost": "red",  # a mapping whose VM does not exist any more
    "overdue": "red",  # a critical job
    "vanished": "red",  # an agent process that has probably crashed
}


def show_rows(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, if_empty: str) -> None:
    """Print a table, or `if_empty` if there are no rows. `columns` has the headings, keyed by the keys of the rows.

    On a terminal, only the columns with free text (`table_layout.FREE_TEXT_COLUMNS`) are wrapped,
    and `table_layout.columns_that_fit` decides which columns are omitted. A word that is wider than its column, such as
    the id of a Proxmox task, is not broken. The column of such a word is moved to the right end of the table. There,
    the terminal can break the word without shifting another column. Without a terminal, nothing is wrapped and no
    column is omitted.
    """
    if not rows:
        show_text(if_empty)
        return
    if terminal_width() is None:
        _print_plain_rows(rows, columns)
        return
    from rich.table import Table  # noqa: PLC0415

    cells = [{key: coloured_cell_text(row.get(key)) for key in columns} for row in rows]
    unwrapped_widths = {
        key: max(len(heading), *(row[key].cell_len for row in cells)) for key, heading in columns.items()
    }
    empty_keys = [key for key in columns if all(row.get(key) in EMPTY_FIELD_VALUES for row in rows)]
    # If the terminal is too narrow, the columns of `empty_keys` are omitted first.
    shown_keys, table_width = columns_that_fit(unwrapped_widths, terminal_width(), empty_keys=empty_keys)
    # `table_width` is None only without a terminal. The type checker does not know that stdout is a terminal here.
    for key, column_width in free_text_widths(
        shown_keys, unwrapped_widths, table_width or UNWRAPPED_LINE_WIDTH
    ).items():
        for row in cells:
            row[key] = wrap_at_spaces(row[key], column_width)
        if any(line.cell_len > column_width for row in cells for line in row[key].split("\n")):
            shown_keys = [*(each for each in shown_keys if each != key), key]
    table = Table(box=None, padding=CELL_PADDING, pad_edge=False, header_style="bold")
    for key in shown_keys:
        table.add_column(columns[key], no_wrap=True)
    for row in cells:
        table.add_row(*(row[key] for key in shown_keys))
    print_renderable(table)


def _print_plain_rows(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print a table for a pipe or a file. A list may have a hundred thousand rows, for which rich takes minutes."""
    lines = [tuple(columns.values()), *(tuple(cell_text(row.get(key)) for key in columns) for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for cells in lines:
        padded_cells = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        sys.stdout.write(f"{(' ' * COLUMN_GAP).join(padded_cells).rstrip()}\n")


def show_fields(fields: Mapping[str, Any]) -> None:
    """Print one line for each field that has a value, with the field's name and the value."""
    values_by_label = {
        name.replace("_", " "): value for name, value in fields.items() if value not in EMPTY_FIELD_VALUES
    }
    label_width = max(map(len, values_by_label), default=0) + COLUMN_GAP
    width = terminal_width()
    if width is None:
        for label, value in values_by_label.items():
            sys.stdout.write(f"{label.ljust(label_width)}{cell_text(value)}\n")
        return
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, padding=CELL_PADDING, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True)
    for label, value in values_by_label.items():
        text, remaining_width = coloured_cell_text(value), width - label_width
        table.add_row(Text(label), wrap_at_spaces(text, remaining_width) if text.cell_len > remaining_width else text)
    print_renderable(table)


def show_heading(text: str) -> None:
    """Print a title with an empty line before it."""
    show_text("")
    if not is_terminal():
        sys.stdout.write(f"{sanitized(text)}\n")
        return
    from rich.text import Text  # noqa: PLC0415

    print_renderable(Text(sanitized(text), style="bold"))


def show_indented_json(value: Any) -> None:
    """Print the value as JSON for operators: indented, and without escapes for characters outside ASCII."""
    show_text(json.dumps(redactor.redact_value(to_json_types(value)), indent=2, ensure_ascii=False))


def wrap_at_spaces(text: Text, width: int) -> Text:
    """Return the text with line breaks between words. A word that is wider than the width is not broken."""
    from rich.cells import cell_len  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    width = max(width, MIN_FREE_TEXT_WIDTH)
    lines = [""]
    for word in re.findall(r"\s*\S+", text.plain):
        if lines[-1] and cell_len(lines[-1] + word) > width:
            lines.append(word.strip())
        else:
            lines[-1] += word
    return Text("\n".join(lines), style=text.style)


def coloured_cell_text(value: Any) -> Text:
    """Return the value as text for a cell of a table, in the colour of COLOUR_BY_TEXT."""
    from rich.text import Text  # noqa: PLC0415

    text = cell_text(value)
    return Text(text, style="dim" if text == NO_VALUE else COLOUR_BY_TEXT.get(text, ""))


def cell_text(value: Any) -> str:
    """Return the value as text for a cell of a table."""
    if value is None or value in ([], ()):
        return NO_VALUE
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return sanitized(", ".join(str(item) for item in value))
    return sanitized(str(value))


def is_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def terminal_width() -> int | None:
    """Return the width of the terminal in characters, or None if stdout is no terminal."""
    return shutil.get_terminal_size().columns if is_terminal() else None


def print_renderable(renderable: RenderableType) -> None:
    """Print an object of rich without the spaces that rich adds at the ends of the lines. No line is wrapped."""
    from rich.console import Console  # noqa: PLC0415

    # Without a height, rich would use 80 columns if TERM is `dumb`, as in a cron job.
    console = Console(file=sys.stdout, width=UNWRAPPED_LINE_WIDTH, height=1, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(renderable)
    lines: Iterable[str] = captured.get().rstrip("\n").split("\n")
    sys.stdout.write("".join(f"{_TRAILING_SPACES.sub('', line)}\n" for line in lines))
