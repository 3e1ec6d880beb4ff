"""Prints a table row by row: each row when the caller passes it to `show`. The caller sets the column widths."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from executor.cli.table_layout import COLUMN_GAP, FREE_TEXT_COLUMNS, columns_that_fit
from executor.cli.tables import CELL_PADDING, coloured_cell_text, print_renderable, terminal_width, wrap_at_spaces


class StreamedTable:
    """A table that prints each row immediately.

    A cell that is wider than its column moves the following cells of its row to the right. The last column may have
    free text, which is wrapped at spaces on a terminal.
    """

    def __init__(self, columns: Mapping[str, str], widths: Mapping[str, int]) -> None:
        """Choose the columns that fit. `columns` has the heading, and `widths` the width, for each key of a row."""
        self._headings, self._widths = columns, widths
        # `_table_width` is the width that a row should not exceed; None (no limit) if stdout is no terminal.
        self._shown_keys, self._table_width = columns_that_fit(widths, terminal_width())
        self._is_heading_printed = False

    def show(self, row: Mapping[str, Any]) -> None:
        """Print one row. The headings are printed before the first row."""
        from rich.table import Table  # noqa: PLC0415

        table = Table(
            box=None,
            padding=CELL_PADDING,
            pad_edge=False,
            header_style="bold",
            show_header=not self._is_heading_printed,
        )
        cells = {key: coloured_cell_text(row.get(key)) for key in self._shown_keys}
        remaining_width = self._table_width
        for key, cell in cells.items():
            has_free_text = key in FREE_TEXT_COLUMNS
            if remaining_width is not None and has_free_text:
                cells[key] = wrap_at_spaces(cell, remaining_width)
            elif remaining_width is not None:
                remaining_width -= max(cell.cell_len, self._widths[key]) + COLUMN_GAP
            table.add_column(self._headings[key], no_wrap=True, min_width=None if has_free_text else self._widths[key])
        table.add_row(*cells.values())
        print_renderable(table)
        sys.stdout.flush()
        self._is_heading_printed = True
