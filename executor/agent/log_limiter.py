"""Limits how often a log line repeats a number, for example the number of invalid jobs in FulcrumCore's answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

#: Minimum time after which a number that has not grown is logged again.
LOG_INTERVAL_S = 3600.0


@dataclass(kw_only=True)
class LogLimiter:
    """Limits the log lines about a number. A number that has not grown is logged once per LOG_INTERVAL_S."""

    clock: Callable[[], float] = time.monotonic
    _logged_count: int = 0  #: the number in the last log line
    _logged_at: float = float("-inf")  #: the time of the last log line, by `clock`

    def should_log(self, count: int) -> bool:
        """Return whether the caller must log this number: the number has grown, or LOG_INTERVAL_S has passed.

        Returns False for 0.
        """
        is_due = self.clock() - self._logged_at >= LOG_INTERVAL_S
        if count == 0 or (count <= self._logged_count and not is_due):
            return False
        self._logged_count, self._logged_at = count, self.clock()
        return True
