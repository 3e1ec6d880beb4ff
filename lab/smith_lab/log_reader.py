"""Reads the executor's log while the executor writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class LogReader:
    """Reads a growing log of JSON lines. Several calls of `read` parse each complete line only once."""

    def __init__(self) -> None:
        self._entries: list[Json] = []
        self._size = 0  #: size in bytes of the complete lines that were parsed, which is where the next read starts

    def read(self, file: Path) -> list[Json]:
        """Return the entries of all lines. An incomplete last line is included, and the next call parses it again."""
        if not file.exists():
            return []
        if file.stat().st_size < self._size:  # the file was replaced or emptied
            self._entries, self._size = [], 0
        with file.open("rb") as log:
            log.seek(self._size)
            new = log.read()
        complete_lines = new[: new.rfind(b"\n") + 1]
        self._entries += _parse_lines(complete_lines)
        self._size += len(complete_lines)
        return [*self._entries, *_parse_lines(new[len(complete_lines) :])]


def _parse_lines(text: bytes) -> list[Json]:
    """Parse JSON lines. A line that is not JSON becomes an entry with the event `unreadable`."""
    entries: list[Json] = []
    for line in text.decode(errors="replace").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            entries.append({"event": "unreadable", "text": line})
    return entries
