"""Logs at a bounded rate how many jobs in FulcrumCore's answers the agent ignores."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from executor.log import get_logger

log = get_logger(__name__)

#: Minimum time between two log lines about the same number of ignored jobs, or about a smaller number.
LOG_INTERVAL_S = 3600.0


@dataclass(kw_only=True)
class IgnoredJobsLog:
    """Logs the number of ignored jobs when it has grown, and otherwise once per LOG_INTERVAL_S.

    FulcrumCore sends the same jobs with each answer. A number that only varies is not logged again.
    """

    event: str  #: the name of the log event
    clock: Callable[[], float] = time.monotonic
    _logged_count: int = 0  #: the number in the last log line
    _logged_at: float = float("-inf")  #: the time of the last log line, by `clock`

    def note(self, count: int, **details: Any) -> None:
        """Record the number of ignored jobs in an answer; log it with `details` if that is due."""
        is_due = self.clock() - self._logged_at >= LOG_INTERVAL_S
        if count == 0 or (count <= self._logged_count and not is_due):
            return
        log.warning(self.event, count=count, **details)
        self._logged_count, self._logged_at = count, self.clock()
