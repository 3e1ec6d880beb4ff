"""Estimates how far FulcrumCore's clock differs from this machine's, from the `Date` headers of its responses."""

from __future__ import annotations

import math
import threading
from email.utils import parsedate_to_datetime


class ClockOffset:
    """Estimates the offset: FulcrumCore's clock minus this machine's clock.

    FulcrumCore writes the `Date` header after this machine has sent the request and before it receives the response.
    The header has whole seconds, so the exact time on FulcrumCore's clock is up to one second later. Thus each response
    gives a lower and an upper bound of the offset. All responses together give a range, and the estimate is the middle
    of this range. If a response contradicts the range, one of the clocks was changed. Then the estimate starts again
    with this response.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._low = -math.inf
        self._high = math.inf

    @property
    def seconds(self) -> float:
        """The estimated offset; 0.0 before the first response."""
        with self._lock:
            return 0.0 if math.isinf(self._low) else (self._low + self._high) / 2

    def add_sample(self, date: str | None, *, sent_at: float, received_at: float) -> None:
        """Narrow the range of the offset by one response, whose `Date` header is `date`.

        A missing or unreadable date changes nothing.
        """
        header_s = http_date(date)
        if header_s is None or received_at < sent_at:  # true if this machine's clock was set back during the request
            return
        low, high = header_s - received_at, header_s + 1 - sent_at
        with self._lock:
            common = max(low, self._low), min(high, self._high)
            self._low, self._high = common if common[0] <= common[1] else (low, high)


def http_date(text: str | None) -> float | None:
    """Return an HTTP date as seconds since the epoch; None if the date is missing or unreadable."""
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (ValueError, OverflowError, OSError):
        return None
