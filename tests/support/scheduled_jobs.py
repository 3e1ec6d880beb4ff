"""Critical jobs that the tests of the scheduler control."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from executor.agent.scheduler import Scheduler
from executor.database import periods
from executor.database.engine import reading

WITHIN_S = 30.0
OFTEN_S = 0.02
#: An interval that no test waits for.
NEVER_S = 3600.0
MakeScheduler = Callable[..., Scheduler]


def wait_for(is_so: Callable[[], object], what: str) -> None:
    """Wait until the condition is true; fail after a timeout."""
    limit = time.monotonic() + WITHIN_S
    while not is_so():
        assert time.monotonic() < limit, f"{what} never happened"
        time.sleep(0.005)


class FakeJob:
    """The work of a critical job: counts its turns, and returns, calls or raises the given answers."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.turns = 0
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def __call__(self) -> float | None:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
            answer = self._answers.pop(0) if self._answers else None
        try:
            found = answer() if callable(answer) else answer
            if isinstance(found, BaseException):
                raise found
            return found
        finally:
            with self._lock:
                self.at_once -= 1
                self.turns += 1


def facts(engine: Engine, name: str) -> Any:
    """Return a critical job's row, None before there is one."""
    with reading(engine) as session:
        return next((row for row in periods.critical_jobs(session) if row.name == name), None)
