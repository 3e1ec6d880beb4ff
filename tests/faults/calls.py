"""Copies the calls that have ended from the simulator's history, which may keep only the newest calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass
class EndedCalls:
    """Returns each call once, after it has ended, and in the order of arrival.

    `entries` returns the calls after the one with this sequence number, oldest first.
    """

    entries: Callable[[int], list[Json]]
    _last_seq: int = 0

    def read_new(self) -> list[Json]:
        """Return the calls that have ended since this method was called last."""
        ended = []
        for entry in self.entries(self._last_seq):
            if entry["status"] is None and entry["duration_s"] is None:
                break  # still in progress: read again the next time
            self._last_seq = entry["seq"]
            ended.append(entry)
        return ended


def is_job_call(entry: Json) -> bool:
    """Return whether a call claims or reports a job."""
    return entry["method"] == "POST" and "/jobs/" in entry["path"]
