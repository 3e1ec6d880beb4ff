"""Estimates the difference between FulcrumCore's clock and this machine's clock from FulcrumCore's responses."""

from __future__ import annotations

import math
import threading
from email.utils import parsedate_to_datetime


class ClockOffset:
    """Estimates the offset: FulcrumCore's clock minus this machine's clock.

    FulcrumCore writes the `Date` header after this machine has sent the request and before this machine receives the
    response. The header has whole seconds, so the exact time on FulcrumCore's clock was up to one second later. Thus
    each response gives a lower and an upper bound of the offset. All responses together give a range. The estimate is
    the middle of this range. If a response contradicts the range, one of the clocks was changed, and the bounds of this
    response become the new range.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lower_bound_s = -math.inf
        self._upper_bound_s = math.inf

    @property
    def seconds(self) -> float:
        """The estimated offset; 0.0 before the first response."""
        with self._lock:
            return 0.0 if math.isinf(self._lower_bound_s) else (self._lower_bound_s + self._upper_bound_s) / 2

    def add_sample(self, date: str | None, *, sent_at: float, received_at: float) -> None:
        """Narrow the range of the offset by one response. `date` is the `Date` header of the response.

        A missing or unreadable date changes nothing.
        """
        time_at_fulcrum = parse_http_date(date)
        was_clock_set_back = received_at < sent_at
        if time_at_fulcrum is None or was_clock_set_back:
            return
        lower_bound_s = time_at_fulcrum - received_at
        upper_bound_s = time_at_fulcrum + 1 - sent_at
        with self._lock:
            is_contradiction = lower_bound_s > self._upper_bound_s or upper_bound_s < self._lower_bound_s
            if not is_contradiction:
                lower_bound_s = max(lower_bound_s, self._lower_bound_s)
                upper_bound_s = min(upper_bound_s, self._upper_bound_s)
            self._lower_bound_s, self._upper_bound_s = lower_bound_s, upper_bound_s


def parse_http_date(text: str | None) -> float | None:
    """Return an HTTP date as Unix time in seconds; None if the date is missing or unreadable."""
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (ValueError, OverflowError, OSError):
        return None
