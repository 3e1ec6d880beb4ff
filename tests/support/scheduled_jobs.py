"""Critical jobs that the tests of the scheduler control."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from executor.agent.scheduler import Scheduler
from executor.database import agent_queries
from executor.database.engine import read_only_session

WITHIN_S = 30.0
#: An interval so short that a critical job is executed many times during a test.
OFTEN_S = 0.02
#: An interval that no test waits for.
NEVER_S = 3600.0
MakeScheduler = Callable[..., Scheduler]


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until the condition is true; fail after a timeout."""
    limit = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < limit, f"{what} never happened"
        time.sleep(0.005)


class FakeJob:
    """The function of a critical job. It counts its executions (`turns`).

    Execution number n returns the answer number n, calls it if it is callable, and raises it if it is an exception.
    """

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.turns = 0
        self.running_now = 0
        self.max_running_at_once = 0
        self._lock = threading.Lock()

    def __call__(self) -> float | None:
        with self._lock:
            self.running_now += 1
            self.max_running_at_once = max(self.running_now, self.max_running_at_once)
            answer = self._answers.pop(0) if self._answers else None
        try:
            value = answer() if callable(answer) else answer
            if isinstance(value, BaseException):
                raise value
            return value
        finally:
            with self._lock:
                self.running_now -= 1
                self.turns += 1


def facts(engine: Engine, name: str) -> Any:
    """Return the row of the critical job with this name, None if it has none yet."""
    with read_only_session(engine) as session:
        return next((row for row in agent_queries.list_critical_jobs(session) if row.name == name), None)
