"""The lab's own state: the fault rules in force, and the history of every API call."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from smith_lab.simulator.fault_rules import Rule

MAX_ENTRIES = 100_000


@dataclass(kw_only=True)
class Entry:
    """One call in the history. `status` is None while no answer was sent."""

    seq: int
    time: float  #: real time of arrival, in seconds since the epoch
    method: str
    path: str
    query: str
    body: Any = None
    token_name: str | None = None
    role: str | None = None
    agent_id: str | None = None
    status: int | None = None
    error: str | None = None  #: the answer's body, from status 400 on
    fault: str | None = None
    duration_s: float | None = None


@dataclass
class LabState:
    """Fault rules and history. The store holds what FulcrumCore itself would keep."""

    rules: list[Rule] = field(default_factory=list)
    history: deque[Entry] = field(default_factory=lambda: deque(maxlen=MAX_ENTRIES))
    calls: int = 0

    def rule_for(self, method: str, path: str) -> Rule | None:
        """Return the first rule that affects this call."""
        return next((rule for rule in self.rules if rule.applies_to(method, path)), None)

    def begin(self, scope: Scope) -> Entry:
        """Add a call to the history when it arrives."""
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
        """Return the calls after this sequence number, in order; all, or those of a method and with a path's end."""
        return [
            dict(vars(entry))  # no copy of the body, which does not change
            for entry in list(self.history)  # a copy: calls keep arriving
            if entry.seq > since and method in ("", entry.method) and entry.path.endswith(path_end)
        ]
