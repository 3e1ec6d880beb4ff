"""Prints a view again and again at a fixed interval, until Ctrl-C.

A view is a text with values from the database.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import time
from collections.abc import Callable

from executor.cli.context import open_settings
from executor.cli.output import show_text
from executor.cli.store import ReadOnlyTransaction, open_database
from executor.database.engine import read_only_connection
from executor.errors import DatabaseUnavailable

#: The interval at which the view is printed.
INTERVAL_S = 2.0
#: Terminal control sequences: move to the upper left corner; clear the rest of the line, and of the screen.
CURSOR_HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
CLEAR_SCREEN = "\x1b[2J"


class _TerminalText(io.StringIO):
    """Collects a view that is written to the terminal later. `isatty` makes tables use the layout for a terminal."""

    def isatty(self) -> bool:
        return True


def repeat_view(print_view: Callable[[ReadOnlyTransaction], None]) -> None:
    """Call `print_view` every INTERVAL_S seconds until Ctrl-C. On a terminal, each view replaces the previous view.

    While the database cannot be used, the error is shown in place of the view.
    """
    settings = open_settings()
    is_terminal = sys.stdout.isatty()
    if is_terminal:
        sys.stdout.write(CLEAR_SCREEN)
    with open_database(settings) as engine, contextlib.suppress(KeyboardInterrupt):
        while True:
            view_text = _TerminalText() if is_terminal else io.StringIO()
            with contextlib.redirect_stdout(view_text):
                try:
                    with read_only_connection(engine) as connection:
                        print_view(ReadOnlyTransaction(settings=settings, connection=connection))
                except DatabaseUnavailable as error:
                    show_text(str(error))
            _write_view(view_text.getvalue(), is_terminal=is_terminal)
            time.sleep(INTERVAL_S)


def _write_view(text: str, *, is_terminal: bool) -> None:
    if not is_terminal:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
        return
    height = shutil.get_terminal_size().lines
    lines = text.rstrip("\n").split("\n")[: height - 1]
    sys.stdout.write(CURSOR_HOME + "".join(f"{line}{CLEAR_LINE}\n" for line in lines) + CLEAR_BELOW)
    sys.stdout.flush()
