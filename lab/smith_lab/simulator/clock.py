"""The simulator's own time: real time plus an offset, or standing still."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


class SimulatorClock:
    """Tells the server's time in seconds since the epoch; tests move or stop it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Show real time again."""
        self._offset_s = 0.0
        self._frozen_at: float | None = None

    @property
    def frozen(self) -> bool:
        return self._frozen_at is not None

    def now(self) -> float:
        if self._frozen_at is not None:
            return self._frozen_at
        return time.time() + self._offset_s

    def set(self, at: float) -> None:
        """Make it `at` now; a frozen clock stays frozen."""
        if self._frozen_at is not None:
            self._frozen_at = at
        else:
            self._offset_s = at - time.time()

    def advance(self, seconds: float) -> None:
        self.set(self.now() + seconds)

    def freeze(self, frozen: bool) -> None:
        """Stop the clock, or let it run on from where it stands."""
        at = self.now()
        self._frozen_at = at if frozen else None
        self.set(at)


def to_text(at: float) -> str:
    """UTC, whole seconds: `2026-01-02T03:04:05Z`, the only form FulcrumCore writes."""
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_text(text: str) -> float:
    """Read an RFC 3339 time. Raises ValueError for anything else, as Go's decoder does."""
    if not _RFC3339.fullmatch(text):
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    return datetime.fromisoformat(text.upper()).timestamp()
