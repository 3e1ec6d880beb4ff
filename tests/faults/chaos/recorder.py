"""Records during a chaos run what cannot be read at its end: calls, heartbeats, and runs that overlap on one VM."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from typing import Any

from faults.calls import EndedCalls, is_job_call
from faults.processes import run_idents
from faults.system import SystemUnderTest

Json = dict[str, Any]
#: The time between two readings of the list of processes.
SAMPLE_INTERVAL_S = 0.25


class Recorder:
    """Records calls and runs at each `turn`. `entries` is passed to `EndedCalls`."""

    def __init__(self, system: SystemUnderTest, entries: Callable[[int], list[Json]]) -> None:
        self._system = system
        self._ended_calls = EndedCalls(entries)
        self._next_sample_at = 0.0
        self._run_pairs: Counter[tuple[str, str]] = Counter()  #: idents of runs that had live processes at once
        self.idents_seen: set[str] = set()  #: the idents of the runs that were seen with a live process
        self.calls: list[Json] = []
        self.heartbeat_times: list[float] = []

    def turn(self) -> None:
        """Record the calls that have ended since the last turn, and the runs that have processes now."""
        self._record_calls()
        if time.monotonic() >= self._next_sample_at:
            idents = run_idents(self._system.lab.folder)
            self.idents_seen |= idents
            self._run_pairs.update(combinations(sorted(idents), 2))
            self._next_sample_at = time.monotonic() + SAMPLE_INTERVAL_S

    def _record_calls(self) -> None:
        for entry in self._ended_calls.read_new():
            if is_job_call(entry):
                self.calls.append(entry)
            elif entry["path"].endswith("/agents/me/status"):
                self.heartbeat_times.append(entry["time"])

    def overlapping_runs(self) -> list[str]:
        """Return a text for each pair of runs of one service that were seen at the same time. Call this at the end."""
        rows = self._system.rows("SELECT runs.ident, jobs.service_id FROM runs JOIN jobs ON jobs.id = runs.job_id")
        return overlapping_runs(self._run_pairs, {row["ident"]: row["service_id"] for row in rows})


def overlapping_runs(seen_pairs: dict[tuple[str, str], int], service_of: dict[str, str]) -> list[str]:
    """Return a text for each pair of runs of one service. `service_of` has a run's ident as key."""
    return [
        f"R2 overlapping runs on one VM: {first} and {second} of service {service_of[first]}, seen {count} times"
        for (first, second), count in seen_pairs.items()
        if first in service_of and service_of[first] == service_of.get(second)
    ]
