"""Reads the executor's log while the executor writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class LogReader:
    """Reads a growing log of JSON lines, and parses each complete line only once."""

    def __init__(self) -> None:
        self._entries: list[Json] = []
        self._parsed_byte_count = 0  #: size of the parsed complete lines; the next read starts at this offset

    def read(self, file: Path) -> list[Json]:
        """Return one entry (a JSON object) for each line of the log.

        The last line may be incomplete. The next call parses it again.
        """
        if not file.exists():
            return []
        if file.stat().st_size < self._parsed_byte_count:  # the file was replaced or emptied
            self._entries, self._parsed_byte_count = [], 0
        with file.open("rb") as log:
            log.seek(self._parsed_byte_count)
            new_bytes = log.read()
        complete_lines = new_bytes[: new_bytes.rfind(b"\n") + 1]
        incomplete_line = new_bytes[len(complete_lines) :]
        self._entries += _parse_lines(complete_lines)
        self._parsed_byte_count += len(complete_lines)
        return [*self._entries, *_parse_lines(incomplete_line)]


def _parse_lines(lines: bytes) -> list[Json]:
    """Parse JSON lines. A line that is not JSON becomes an entry with the event `unreadable`."""
    entries: list[Json] = []
    for line in lines.decode(errors="replace").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            entries.append({"event": "unreadable", "text": line})
    return entries
