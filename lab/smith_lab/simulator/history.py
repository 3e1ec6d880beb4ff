"""Keeps the state that FulcrumCore does not have: the active fault rules and the history of API calls."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from smith_lab.simulator.fault_rules import Rule

#: How many calls the history keeps. If there are more, the oldest calls are removed.
MAX_ENTRIES = 100_000


@dataclass(kw_only=True)
class Entry:
    """One API call in the history. `status` is None until an answer was sent."""

    seq: int  #: number of the call; the first call after the start has 1
    time: float  #: real time of arrival, in seconds since the epoch
    method: str
    path: str
    query: str
    body: Any = None
    token_name: str | None = None
    role: str | None = None
    agent_id: str | None = None
    status: int | None = None
    error: str | None = None  #: the answer's body, if the status is 400 or more
    fault: str | None = None  #: kind of the fault rule that affected the call; None if there was none
    duration_s: float | None = None


@dataclass
class LabState:
    """The fault rules and the history of API calls. The class Store contains what the real FulcrumCore stores, too."""

    rules: list[Rule] = field(default_factory=list)
    history: deque[Entry] = field(default_factory=lambda: deque(maxlen=MAX_ENTRIES))
    calls: int = 0  #: number of calls since the start

    def take_rule(self, method: str, path: str) -> Rule | None:
        """Return the first rule that affects this API call, or None.

        Use this method only once for each API call, because it reduces `skip` or `times` of the rules that match the
        call.
        """
        return next((rule for rule in self.rules if rule.applies_to(method, path)), None)

    def record_arrival(self, scope: Scope) -> Entry:
        """Add an arriving call to the history and return its entry."""
        self.calls += 1
        entry = Entry(
            seq=self.calls,
            time=time.time(),
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
        )
        self.history.append(entry)
        return entry

    def entries(self, since: int = 0, method: str = "", path_end: str = "") -> list[dict[str, Any]]:
        """Return the calls after number `since`, oldest first, if their method and the end of their path match."""
        return [
            dict(vars(entry))  # a shallow copy is sufficient, because the body does not change
            for entry in list(self.history)  # copied, because other threads add calls meanwhile
            if entry.seq > since and method in ("", entry.method) and entry.path.endswith(path_end)
        ]
