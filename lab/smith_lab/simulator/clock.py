"""Provides the simulator's clock, which shows either real time plus an offset or a frozen time."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


class SimulatorClock:
    """The server's time, in seconds since the epoch. Tests set, advance or freeze it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Show real time again, without an offset."""
        self._offset_s = 0.0
        self._frozen_at: float | None = None

    @property
    def frozen(self) -> bool:
        """Whether the time stands still until a test sets or advances it."""
        return self._frozen_at is not None

    def now(self) -> float:
        """Return the time that the clock shows."""
        if self._frozen_at is not None:
            return self._frozen_at
        return time.time() + self._offset_s

    def set(self, at: float) -> None:
        """Set the time to `at`. A frozen clock stays frozen."""
        if self._frozen_at is not None:
            self._frozen_at = at
        else:
            self._offset_s = at - time.time()

    def advance(self, seconds: float) -> None:
        """Move the time forward. A frozen clock stays frozen."""
        self.set(self.now() + seconds)

    def freeze(self, frozen: bool) -> None:
        """Freeze the clock, or let it run again from the time that it shows."""
        at = self.now()
        self._frozen_at = at if frozen else None
        self.set(at)


def to_text(at: float) -> str:
    """Return a time as `2026-01-02T03:04:05Z`, the only form that FulcrumCore writes."""
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_text(text: str) -> float:
    """Parse an RFC 3339 time. Raises ValueError for any other form, as Go's decoder does."""
    if not _RFC3339.fullmatch(text):
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    return datetime.fromisoformat(text.upper()).timestamp()
