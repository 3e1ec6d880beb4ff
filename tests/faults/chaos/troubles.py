"""Injects the faults of a chaos run other than kills: errors, delays, lost answers, partitions, full disks, outages.

Most faults last until the next one. A fault in `_ends` lasts longer, while others are injected.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
from faults.chaos.databases import Database
from faults.chaos.load import OPEN
from faults.proxy import Proxy
from faults.system import SystemUnderTest
from support.small_disks import SmallDisk

#: The time between two faults.
FAULT_INTERVAL_S = (0.5, 3.0)
#: The longest time after which FulcrumCore still processes a claim: longer than the executor waits for an answer.
MAX_CLAIM_DELAY_S = 45.0
#: For how long all requests, except a few, are answered with 403.
WINDOW_OF_403_S = (3.0, 30.0)
DATABASE_OUTAGE_S = (2.0, 25.0)
FULL_DISK_S = (3.0, 15.0)


@dataclass
class Troubles:
    """Injects one fault after the other, in an order that `rng` determines."""

    system: SystemUnderTest
    rng: random.Random
    core: Proxy
    proxmox: Proxy
    database: Database
    disks: dict[str, SmallDisk]
    done: Counter[str] = field(default_factory=Counter)
    _next_at: float = 0.0
    #: When to end a fault that lasts longer, and how.
    _ends: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _rules_stay_until: float = 0.0  #: FulcrumCore's fault rules are not deleted before this time

    def turn(self) -> None:
        """Inject the fault that is due, and end those whose time is over."""
        self.end_due()
        if time.monotonic() >= self._next_at:
            self._inject()
            self._next_at = time.monotonic() + self.rng.uniform(*FAULT_INTERVAL_S)

    def end_due(self) -> None:
        """End the faults whose time is over."""
        now = time.monotonic()
        due = [end for end_at, end in self._ends if end_at <= now]
        self._ends = [(end_at, end) for end_at, end in self._ends if end_at > now]
        for end in due:
            end()

    def end_all(self) -> None:
        """End every fault."""
        self._ends = [(0.0, end) for _end_at, end in self._ends]
        self.end_due()
        self.database.make_available()
        for disk in self.disks.values():
            disk.free()
        self.core.set_mode("pass")
        self.proxmox.set_mode("pass")
        self.system.clear_faults()

    def make_database_unavailable(self) -> bool:
        """Stop the database's answers for a time; return False if that is not possible now."""
        if not self.database.make_unavailable():
            return False
        self._end_after(self.rng.uniform(*DATABASE_OUTAGE_S), self.database.make_available)
        return True

    def _end_after(self, seconds: float, end: Callable[[], None]) -> None:
        self._ends.append((time.monotonic() + seconds, end))

    def _inject(self) -> None:
        self.core.set_mode("pass")
        self.proxmox.set_mode("pass")
        troubles: dict[Callable[[], None], int] = {
            self._calm: 8,
            self._lost_response: 6,
            self._errors_of_core: 3,
            self._window_of_403: 1,
            self._late_claim: 2,
            self._repeated_report: 2,
            self._errors_of_proxmox: 4,
            self._lost_clone_response: 2,
            self._failing_task: 1,
            self._partition: 3,
            self._pause: 1,
            self._time_out: 1,
            self._database_hangs: 1,
        }
        if self.disks:
            troubles[self._full_disk] = 1
        trouble = self.rng.choices(list(troubles), weights=list(troubles.values()))[0]
        trouble()
        self.done[trouble.__name__.strip("_").replace("_", " ")] += 1

    def _calm(self) -> None:
        if time.monotonic() >= self._rules_stay_until:
            self.system.lab.core.clear_faults()
        self.system.lab.proxmox.control("clear_faults")

    # --- FulcrumCore ------------------------------------------------------------------------------------------------

    def _lost_response(self) -> None:
        path = self.rng.choice((r"/claim$", r"/complete$", r"/fail$"))
        kind = self.rng.choice(("drop_after", "drop_before", "truncate"))
        self.system.lab.core.add_fault(kind, method="POST", path=path, times=self.rng.randint(1, 3))

    def _errors_of_core(self) -> None:
        status = self.rng.choice((500, 502, 503, 403, 429))
        self.system.lab.core.add_fault("status", status=status, path="^/api/", times=self.rng.randint(1, 10))

    def _window_of_403(self) -> None:
        """Answer with 403 as FulcrumCore does while its database is unavailable; between them, a few requests pass."""
        passed = 0
        for _ in range(12):
            refused = self.rng.randint(1, 12)
            self.system.lab.core.add_fault("status", status=403, path="^/api/", skip=passed, times=refused)
            passed += self.rng.randint(1, 3)
        self._end_after(self.rng.uniform(*WINDOW_OF_403_S), self.system.lab.core.clear_faults)

    def _late_claim(self) -> None:
        """Process a claim late: after the agent's timeout for the answer, or even after the agent's next request."""
        delay_s = self.rng.uniform(1, MAX_CLAIM_DELAY_S)
        self.system.lab.core.add_fault("delay", method="POST", path=r"/claim$", times=1, delay_s=delay_s)
        self._rules_stay_until = time.monotonic() + delay_s

    def _repeated_report(self) -> None:
        """Process a report twice, as a proxy might. A repeated claim would look like that of another installation."""
        self.system.lab.core.add_fault("twice", method="POST", path=r"/(complete|fail)$", times=2)

    def _time_out(self) -> None:
        store = self.system.lab.core.server.store
        with store.lock:
            running = [job.id for job in store.jobs.values() if job.status in OPEN]
        if running:
            job_id = self.rng.choice(running)
            with contextlib.suppress(Exception):  # it may have ended meanwhile
                self.system.lab.core.expire_job(job_id)
                self.system.timed_out.add(job_id)

    # --- Proxmox ------------------------------------------------------------------------------------------------------

    def _errors_of_proxmox(self) -> None:
        method, status = self.rng.choice(("GET", "POST", "PUT")), self.rng.choice((595, 502, 0))
        self.system.lab.proxmox.fail(method, "*", status=status, text="chaos", times=self.rng.randint(1, 4))

    def _lost_clone_response(self) -> None:
        self.system.lab.proxmox.fail("POST", "/nodes/*/qemu/*", status=0, text="chaos", times=1, after=True)

    def _failing_task(self) -> None:
        kind = self.rng.choice(("qmclone", "qmstart", "qmdestroy"))
        self.system.lab.proxmox.fail_task(kind, "chaos: got timeout", times=1)

    # --- the network, the machine and the database --------------------------------------------------------------------

    def _partition(self) -> None:
        proxy = self.rng.choice((self.core, self.proxmox))
        proxy.set_mode(self.rng.choice(("refuse", "hang", "slow")))

    def _pause(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent = self.system.agent()
            agent.suspend()
            time.sleep(self.rng.uniform(0.5, 3.0))
            agent.resume()

    def _database_hangs(self) -> None:
        if self.database.hang():
            self._end_after(self.rng.uniform(*DATABASE_OUTAGE_S), self.database.make_available)

    def _full_disk(self) -> None:
        name = self.rng.choice(sorted(self.disks))
        self.disks[name].fill()
        self.done[f"full {name} folder"] += 1
        self._end_after(self.rng.uniform(*FULL_DISK_S), self.disks[name].free)
