"""Runs the preflight checks for the page `doctor`, and keeps the results of the last run."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from executor.database.times import utc_now
from executor.doctor.checks import CheckResult, Status
from executor.doctor.run import run_checks


@dataclass(frozen=True, kw_only=True)
class CheckRun:
    """The results of one run of all checks."""

    started_at: datetime
    checks: Sequence[CheckResult]

    @property
    def problems(self) -> list[CheckResult]:
        """The results of the checks that failed or gave a warning."""
        return [check for check in self.checks if check.status in (Status.FAILED, Status.WARNING)]


class PreflightChecks:
    """Runs the checks in the caller's thread, never in two threads at once. Keeps the results of the last run."""

    def __init__(self) -> None:
        self._run_lock = threading.Lock()
        self.last_check_run: CheckRun | None = None

    def run(self) -> None:
        """Run the checks. If another thread is running the checks, only wait until they end."""
        if self._run_lock.acquire(blocking=False):
            try:
                self.last_check_run = CheckRun(started_at=utc_now(), checks=list(run_checks()))
            finally:
                self._run_lock.release()
        else:
            with self._run_lock:
                pass
