"""Stores the data of the simulator that FulcrumCore does not have: the fault rules and the history of API calls."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from smith_lab.simulator.fault_rules import FaultRule

#: The maximum number of calls in the history. When there are more, the oldest calls are removed.
MAX_ENTRIES = 100_000


@dataclass(kw_only=True)
class HistoryEntry:
    """One API call in the history. `status` is None until an answer is sent.

    `token_name`, `role` and `agent_id` are the name, role and agent of the token in the call.
    """

    seq: int  #: sequence number of the call; the first API call after the server's start has the number 1
    time: float  #: real time of arrival (not the simulator's time), in seconds since 1970
    method: str
    path: str
    query: str
    client: str | None = None  #: the address from which the call was sent
    body: Any = None
    token_name: str | None = None
    role: str | None = None
    agent_id: str | None = None
    status: int | None = None
    error: str | None = None  #: the answer's body, if the status is 400 or more
    fault: str | None = None  #: kind of the fault rule that affected the call; None if there was none
    duration_s: float | None = None


@dataclass
class FaultsAndHistory:
    """The fault rules and the history of API calls."""

    rules: list[FaultRule] = field(default_factory=list)
    history: deque[HistoryEntry] = field(default_factory=lambda: deque(maxlen=MAX_ENTRIES))
    call_count: int = 0  #: number of API calls since the server's start; DELETE /lab/history does not reset it

    def choose_rule(self, method: str, path: str) -> FaultRule | None:
        """Return the first rule that affects this API call, or None.

        This method counts the call in the rules that it checks. So call it only once for each API call.
        """
        return next((rule for rule in self.rules if rule.count_call_and_check_if_affected(method, path)), None)

    def record_arrival(self, scope: Scope) -> HistoryEntry:
        """Add an arriving call to the history and return its entry."""
        self.call_count += 1
        entry = HistoryEntry(
            seq=self.call_count,
            time=time.time(),
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
            client=scope["client"][0] if scope.get("client") else None,
        )
        self.history.append(entry)
        return entry

    def entries(self, since: int = 0, method: str = "", path_end: str = "") -> list[dict[str, Any]]:
        """Return the calls whose `seq` is greater than `since`, and whose path ends with `path_end`.

        Return only calls with the HTTP method `method`, unless it is empty. The oldest call comes first.
        """
        return [
            dict(vars(entry))  # a shallow copy is sufficient, because the body does not change
            for entry in list(self.history)  # copied, because other threads add calls meanwhile
            if entry.seq > since and method in ("", entry.method) and entry.path.endswith(path_end)
        ]
