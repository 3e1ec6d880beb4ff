"""FulcrumCore's clock, estimated from the `Date` headers of its answers."""

from __future__ import annotations

import math
import threading
from email.utils import parsedate_to_datetime


class ClockOffset:
    """FulcrumCore's clock minus ours, from the `Date` header, which is cut to whole seconds.

    Every answer bounds the offset: the header was written between our sending and our receiving, at its second
    or up to one second later. The bounds of all answers are intersected, and the middle is the estimate. When
    they no longer overlap, one of the clocks was set: start again with the newest answer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._low = -math.inf
        self._high = math.inf

    @property
    def seconds(self) -> float:
        """The estimate, 0.0 before the first answer."""
        with self._lock:
            return 0.0 if math.isinf(self._low) else (self._low + self._high) / 2

    def note(self, date: str | None, *, sent_at: float, received_at: float) -> None:
        """Take one answer into account. A missing or unreadable date changes nothing."""
        second = http_date(date)
        if second is None or received_at < sent_at:  # our own clock was set back meanwhile
            return
        low, high = second - received_at, second + 1 - sent_at
        with self._lock:
            both = max(low, self._low), min(high, self._high)
            self._low, self._high = both if both[0] <= both[1] else (low, high)


def http_date(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (ValueError, OverflowError, OSError):
        return None
