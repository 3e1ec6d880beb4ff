"""Kills, suspends and cuts off machines, in an order that a seed determines. Two of three may have a fault at a time.

After a kill, at least one machine that worked before it gets no fault until the jobs of the killed machine have been
taken over, because the trial also measures how long that takes.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from faults.many_machines.machines import Machine
from faults.many_machines.network import SERVERS
from faults.system import SystemUnderTest

#: The time between two faults, if enough machines work.
FAULT_INTERVAL_S = (1.0, 8.0)
#: The kinds of faults, each with its weight.
KIND_WEIGHTS = {
    "killed": 5,
    "killed and started at once": 1,
    "paused": 3,
    "cut from the database": 2,
    "cut from Proxmox": 2,
    "cut from FulcrumCore": 2,
    "cut from all": 3,
}
#: Each of these is injected once, in any order, before other faults.
INJECTED_FIRST = ("killed", "paused", "cut from the database", "cut from Proxmox", "cut from FulcrumCore")
CUTS = {
    "cut from the database": ("database",),
    "cut from Proxmox": ("Proxmox",),
    "cut from FulcrumCore": ("FulcrumCore",),
    "cut from all": tuple(SERVERS),
}
#: How long a fault lasts, as shares of a lease. All but `killed and started at once` last longer than a lease.
DURATION_SHARES = {"killed": (1.7, 2.2), "killed and started at once": (0.1, 0.5)}
OTHER_DURATION_SHARES = (1.15, 1.8)
#: After this share of a lease, the jobs of a killed machine have been claimed by others.
TAKEOVER_SHARE = 1.5
#: A machine that has renewed its leases within this share of a lease works.
RENEWED_SHARE = 0.5
CHECK_INTERVAL_S = 0.5


@dataclass
class Troubles:
    """Injects faults, as many as `faults` says, one after the other."""

    system: SystemUnderTest
    machines: list[Machine]
    rng: random.Random
    lease_s: float
    faults: int
    done: Counter[str] = field(default_factory=Counter)
    wanted_jobs: int = 0  #: jobs that are needed in addition, because a kill waits for a machine with a running job
    _plan: list[str] = field(default_factory=list)
    _next_at: float = 0.0
    _next_check_at: float = 0.0
    #: By machine with a fault: when the fault ends, and the function that ends it.
    _ends: dict[str, tuple[float, Callable[[], None]]] = field(default_factory=dict)
    _working_since: dict[str, float] = field(default_factory=dict)
    _killed_at: dict[str, float] = field(default_factory=dict)  #: the last kill of each machine

    def __post_init__(self) -> None:
        first = self.rng.sample(INJECTED_FIRST, len(INJECTED_FIRST))
        more = self.rng.choices(
            list(KIND_WEIGHTS), weights=list(KIND_WEIGHTS.values()), k=max(0, self.faults - len(first))
        )
        self._plan = [*first, *more][: self.faults]

    @property
    def are_over(self) -> bool:
        """Whether all faults were injected and have ended."""
        return not self._plan and not self._ends

    def turn(self) -> None:
        """End the faults whose time is over, and inject the one that is due."""
        now = time.monotonic()
        for name, (end_at, end) in list(self._ends.items()):
            if now >= end_at:
                end()
                del self._ends[name]
        if now >= self._next_check_at:
            self._next_check_at = now + CHECK_INTERVAL_S
            self._update_working_since()
            if self._plan and now >= self._next_at:
                self._inject()

    def end_all(self) -> None:
        """End every fault now."""
        self._plan.clear()
        for _end_at, end in self._ends.values():
            end()
        self._ends.clear()

    def all_machines_work(self) -> bool:
        """Return whether every machine renews its leases."""
        self._update_working_since()
        return len(self._working_since) == len(self.machines)

    def _update_working_since(self) -> None:
        """Store since when each machine works. A machine works if it has no fault and has renewed its leases."""
        query = "SELECT DISTINCT host FROM nodes WHERE seen_at > clock_timestamp() - make_interval(secs => ?)"
        hosts = {row["host"] for row in self.system.rows(query, self.lease_s * RENEWED_SHARE)}
        for machine in self.machines:
            if machine.network.name in hosts and machine.name not in self._ends:
                self._working_since.setdefault(machine.name, time.monotonic())
            else:
                self._working_since.pop(machine.name, None)

    def _inject(self) -> None:
        kind = self._plan[0]
        candidates = [machine for machine in self.machines if self._may_have_fault(machine)]
        if kind.startswith("killed"):
            hosts_with_jobs = self._hosts_with_jobs()
            self.wanted_jobs += not hosts_with_jobs
            candidates = [machine for machine in candidates if machine.network.name in hosts_with_jobs]
        if not candidates:
            return
        machine = self.rng.choice(candidates)
        shares = DURATION_SHARES.get(kind, OTHER_DURATION_SHARES)
        end = self._start_fault(machine, kind)
        self._ends[machine.name] = (time.monotonic() + self.rng.uniform(*shares) * self.lease_s, end)
        self._working_since.pop(machine.name, None)
        self.done[self._plan.pop(0)] += 1
        self._next_at = time.monotonic() + self.rng.uniform(*FAULT_INTERVAL_S)

    def _may_have_fault(self, machine: Machine) -> bool:
        """Return whether the machine works, and another one has worked since before each recent kill."""
        now = time.monotonic()
        others = {name: since for name, since in self._working_since.items() if name != machine.name}
        recent_kills = [at for at in self._killed_at.values() if now - at < TAKEOVER_SHARE * self.lease_s]
        return (
            machine.name in self._working_since
            and bool(others)
            and all(any(since <= at for since in others.values()) for at in recent_kills)
        )

    def _hosts_with_jobs(self) -> set[str]:
        query = "SELECT DISTINCT host FROM nodes JOIN jobs ON jobs.owner = nodes.id WHERE jobs.status = 'processing'"
        return {row["host"] for row in self.system.rows(query)}

    def _start_fault(self, machine: Machine, kind: str) -> Callable[[], None]:
        """Begin a fault; return what ends it."""
        if kind.startswith("killed"):
            self._killed_at[machine.name] = time.monotonic()
            machine.kill()
            return machine.start
        if kind == "paused":
            machine.pause()
            return machine.resume
        machine.cut(*CUTS[kind])
        return machine.restore
