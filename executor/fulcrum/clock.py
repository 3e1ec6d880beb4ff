"""FulcrumCore's clock, estimated from the `Date` headers of its responses."""

from __future__ import annotations

import math
import threading
from email.utils import parsedate_to_datetime


class ClockOffset:
    """Estimates FulcrumCore's clock minus ours from the `Date` headers, which have whole seconds only.

    FulcrumCore writes the header between our request and our receipt, and its real time is up to one second later
    than the header. So each response bounds the offset. The bounds of all responses are intersected, and the middle
    is the estimate. If they no longer overlap, one of the clocks was set: start again with the newest response.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._low = -math.inf
        self._high = math.inf

    @property
    def seconds(self) -> float:
        """The estimate; 0.0 before the first response."""
        with self._lock:
            return 0.0 if math.isinf(self._low) else (self._low + self._high) / 2

    def add_sample(self, date: str | None, *, sent_at: float, received_at: float) -> None:
        """Narrow the estimate by one response. A missing or unreadable date changes nothing."""
        second = http_date(date)
        if second is None or received_at < sent_at:  # our own clock was set back between the two
            return
        low, high = second - received_at, second + 1 - sent_at
        with self._lock:
            overlap = max(low, self._low), min(high, self._high)
            self._low, self._high = overlap if overlap[0] <= overlap[1] else (low, high)


def http_date(text: str | None) -> float | None:
    """Return the seconds since the epoch of an HTTP date; None when it is missing or unreadable."""
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (ValueError, OverflowError, OSError):
        return None
