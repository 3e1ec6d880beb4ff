"""Records the history of a trial with several machines, in the form that `check` reads."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faults.calls import EndedCalls, is_job_call
from faults.many_machines import row_changes
from faults.processes import live_runs
from faults.system import SystemUnderTest

Json = dict[str, Any]
#: The time between two readings of the list of processes.
SAMPLE_INTERVAL_S = 0.25


class Recorder:
    """Records machines, calls and runs during the trial. `history` adds what can be read at its end.

    `names` has the name of each machine by the address from which its requests come.
    """

    def __init__(self, system: SystemUnderTest, names: Mapping[str, str]) -> None:
        self._system = system
        self._names = names
        self._ended_calls = EndedCalls(system.lab.core.server.faults_and_history.entries)
        self._records: list[Json] = []
        self._run_states: dict[tuple[str, str], str] = {}  #: by run and machine
        self._next_sample_at = 0.0
        row_changes.record(system)

    def machine(self, node: str, what: str, *servers: str) -> None:
        """Record what happened to a machine just now."""
        self._records.append({"kind": "machine", "at": time.time(), "node": node, "what": what, "servers": servers})

    @property
    def run_count(self) -> int:
        """How many runs were seen with a live process."""
        return len({record["run"] for record in self._records if record["kind"] == "run"})

    def turn(self) -> None:
        """Record the calls that have ended since the last turn, and the runs whose processes have changed."""
        for entry in filter(is_job_call, self._ended_calls.read_new()):
            members = {name: entry[name] for name in ("method", "path", "status", "fault")}
            self._records.append({"kind": "call", "at": entry["time"], "node": self._node(entry), **members})
        if time.monotonic() >= self._next_sample_at:
            self._sample_runs()
            self._next_sample_at = time.monotonic() + SAMPLE_INTERVAL_S

    def _node(self, entry: Json) -> str | None:
        return self._names.get(entry["client"])

    def _sample_runs(self) -> None:
        folder = self._system.lab.folder
        now = {
            (run.ident, run.credentials.relative_to(folder).parts[0]): "suspended" if run.is_suspended else "running"
            for run in live_runs(folder)
        }
        at = time.time()
        states = now | dict.fromkeys(self._run_states.keys() - now.keys(), "ended")
        for (run, node), state in states.items():
            if self._run_states.get((run, node)) != state:
                self._records.append({"kind": "run", "at": at, "node": node, "run": run, "state": state})
        self._run_states = now

    def history(self) -> list[Json]:
        """Return the whole history, oldest first. Call this at the end."""
        self.turn()
        requests = [
            {"kind": "request", "at": entry["time"], "node": self._node(entry)}
            | {name: entry[name] for name in ("method", "path", "params")}
            for entry in self._system.lab.proxmox.changing_requests()
        ]
        rows = row_changes.records(self._system, self._names)
        end = {"kind": "facts", "at": time.time(), "node": None, **_facts(self._system)}
        return [*sorted([*self._records, *requests, *rows], key=lambda record: float(record["at"])), end]


def _facts(system: SystemUnderTest) -> Json:
    facts = system.facts(calls=[], requests=[])
    return facts | {"foreign_vmids": sorted(facts["foreign_vmids"])}


def write(file: Path, history: list[Json]) -> None:
    """Write a history, one record a line."""
    with file.open("w", encoding="utf-8") as target:
        for record in history:
            target.write(json.dumps(record, default=str) + "\n")


def read(file: Path) -> list[Json]:
    """Read a history that `write` has written."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
