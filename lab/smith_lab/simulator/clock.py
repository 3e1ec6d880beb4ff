"""Provides the simulator's clock, which shows either real time plus an offset or a frozen time."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

#: Matches an RFC 3339 time, such as `2026-01-02T03:04:05.5Z` or `2026-01-02T03:04:05+01:00`.
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


class SimulatorClock:
    """The simulator's time, in seconds since 1970. Tests set, advance or freeze it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Show real time again: the clock is not frozen and has no offset."""
        self._offset_s = 0.0
        self._frozen_time: float | None = None

    @property
    def is_frozen(self) -> bool:
        """Whether the time stands still. `set` and `advance` change a frozen clock's time, but do not unfreeze it."""
        return self._frozen_time is not None

    def now(self) -> float:
        """Return the time that the clock shows."""
        if self._frozen_time is not None:
            return self._frozen_time
        return time.time() + self._offset_s

    def set(self, new_time: float) -> None:
        """Set the time. A frozen clock stays frozen."""
        if self._frozen_time is not None:
            self._frozen_time = new_time
        else:
            self._offset_s = new_time - time.time()

    def advance(self, seconds: float) -> None:
        """Move the time forward. A frozen clock stays frozen."""
        self.set(self.now() + seconds)

    def freeze(self) -> None:
        """Make the clock stand still at the time that it shows."""
        self._frozen_time = self.now()

    def unfreeze(self) -> None:
        """Let the clock run again from the time that it shows."""
        shown_time = self.now()
        self._frozen_time = None
        self.set(shown_time)


def time_to_text(time_s: float) -> str:
    """Return a time in the form `2026-01-02T03:04:05Z`, the only form that FulcrumCore writes."""
    return datetime.fromtimestamp(int(time_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_from_text(text: str) -> float:
    """Parse an RFC 3339 time. Raises ValueError for any other form, which FulcrumCore refuses."""
    if not _RFC3339.fullmatch(text):
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    # RFC 3339 also allows `t` and `z` in lower case.
    return datetime.fromisoformat(text.upper()).timestamp()
