"""Reads the executor's log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class LogReader:
    """Reads a log of JSON lines that grows; parses each line once."""

    def __init__(self) -> None:
        self._entries: list[Json] = []
        self._size = 0  #: bytes of the lines that were parsed

    def read(self, file: Path) -> list[Json]:
        """Return all entries. An unfinished last line counts, and is parsed again the next time."""
        if not file.exists():
            return []
        if file.stat().st_size < self._size:  # another file
            self._entries, self._size = [], 0
        with file.open("rb") as log:
            log.seek(self._size)
            new = log.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._entries += _entries(whole)
        self._size += len(whole)
        return [*self._entries, *_entries(new[len(whole) :])]


def _entries(text: bytes) -> list[Json]:
    found: list[Json] = []
    for line in text.decode(errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            found.append({"event": "unreadable", "text": line})
    return found
