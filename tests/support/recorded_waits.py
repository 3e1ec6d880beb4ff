"""An event for tests of loops: it records for how long the loop waits, and does not wait."""

from __future__ import annotations

import threading


class RecordedWaits(threading.Event):
    """Records the timeout of each call of `wait`. The event counts as set from the call number `set_at_call` on."""

    def __init__(self, set_at_call: int | None = None) -> None:
        super().__init__()
        self.waits_s: list[float | None] = []
        self._set_at_call = set_at_call

    def wait(self, timeout: float | None = None) -> bool:
        """Record the timeout; return whether the event is set."""
        self.waits_s.append(timeout)
        if len(self.waits_s) == self._set_at_call:
            self.set()
        return self.is_set()
