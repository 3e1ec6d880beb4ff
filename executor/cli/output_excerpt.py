"""Collects the first and the last lines of the output of a run that an operator started, to store them in the database.

The other lines are omitted, which limits the size of the stored text.
"""

from __future__ import annotations

import threading
from collections import deque

#: The maximum lengths of the kept beginning and of the kept end of the output, in characters.
MAX_HEAD_LENGTH = 16 * 1024
MAX_TAIL_LENGTH = 48 * 1024
#: A longer line is cut to this length in characters.
MAX_LINE_LENGTH = 4 * 1024


class OutputExcerpt:
    """The first and the last lines of an output. One thread may add lines while another reads the text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._head_length = 0
        self._tail_length = 0
        self._omitted_line_count = 0
        self._has_changed = False

    def add(self, line: str) -> None:
        """Add a line. The caller has removed all secrets from the line."""
        line = line[:MAX_LINE_LENGTH]
        with self._lock:
            self._has_changed = True
            if not self._tail and self._head_length + len(line) < MAX_HEAD_LENGTH:
                self._head.append(line)
                self._head_length += len(line) + 1
                return
            self._tail.append(line)
            self._tail_length += len(line) + 1
            while self._tail_length > MAX_TAIL_LENGTH:
                self._tail_length -= len(self._tail.popleft()) + 1
                self._omitted_line_count += 1

    def text(self) -> str:
        """Return the kept lines, with a note where lines are omitted."""
        with self._lock:
            self._has_changed = False
            omission_note = [f"[{self._omitted_line_count} lines omitted]"] if self._omitted_line_count else []
            return "".join(f"{line}\n" for line in (*self._head, *omission_note, *self._tail))

    def text_if_changed(self) -> str | None:
        """Return `text()`, or None if no line was added since the last call of `text` or of this method."""
        return self.text() if self._has_changed else None
