"""Kills FulcrumCore's process, its PostgreSQL or both, and starts them again some seconds later."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field

from faults.real_core.core import Core
from faults.real_core.exchanges import Outage

#: The time from the restart of FulcrumCore to the next kill.
KILL_INTERVAL_S = (1.0, 8.0)
#: The time between a kill and the start of what was killed.
OUTAGE_S = (1.0, 8.0)


@dataclass
class CoreKiller:
    """Kills parts of FulcrumCore one after the other, in an order that `rng` determines."""

    core: Core
    rng: random.Random
    kills: int
    done: Counter[str] = field(default_factory=Counter)  #: kills by what was killed
    outages: list[Outage] = field(default_factory=list)
    _next_at: float = 0.0
    _killed_parts: str = ""  #: what is killed now
    _killed_at: float = 0.0

    @property
    def killed(self) -> int:
        return sum(self.done.values())

    def turn(self, share_of_jobs_requested: float) -> None:
        """Start what was killed if its outage is over, or kill something if a kill is due."""
        if time.monotonic() < self._next_at:
            return
        if self._killed_parts:
            self.restore()
        elif self.killed < self.kills * share_of_jobs_requested:
            self._kill()

    def _kill(self) -> None:
        parts = self.rng.choice([*((part,) for part in self.core.parts), self.core.parts])
        self._killed_parts, self._killed_at = " and ".join(parts), time.time()
        for part in parts:
            self.core.kill(part)
        self.done[self._killed_parts] += 1
        self._next_at = time.monotonic() + self.rng.uniform(*OUTAGE_S)

    def restore(self) -> None:
        """Start what is killed now."""
        if self._killed_parts:
            self.core.restore()
            self.outages.append(Outage(self._killed_parts, self._killed_at, time.time()))
            self._killed_parts = ""
            self._next_at = time.monotonic() + self.rng.uniform(*KILL_INTERVAL_S)
