"""Kills the processes of the executor's tree: the agent, the supervisor, and any other process that runs."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
from faults.chaos.troubles import Troubles
from faults.processes import processes_by_kind
from faults.system import SystemUnderTest

from executor.agent import crash_points

#: Minimum and maximum of the wait between two kills; it begins when the agent is ready again.
KILL_INTERVAL_S = (0.0, 4.0)
#: How long an agent may take to be ready again, including the longest outage of its database and of its disks.
READY_TIMEOUT_S = 240.0
CRASH_TIMEOUT_S = 5.0
#: The kills after which another agent starts.
KILLS_OF_THE_AGENT = frozenset({"agent", "agent at a named point", "agent without database", "supervisor"})


@dataclass
class Killer:
    """Kills `kills` processes, one after the other, in an order that `rng` determines."""

    system: SystemUnderTest
    rng: random.Random
    troubles: Troubles
    kills: int
    call_while_waiting: Callable[[], None]  #: called repeatedly during waits, to record runs
    done: Counter[str] = field(default_factory=Counter)  #: kills by what was killed, and how
    #: The time from each kill until an agent was ready, without kills during an outage of the database.
    recovery_s: list[float] = field(default_factory=list)
    _next_at: float = 0.0

    @property
    def killed(self) -> int:
        return sum(self.done.values())

    def turn(self, share_of_jobs_requested: float) -> None:
        """Kill a process if a kill is due. After a kill of agent or supervisor, wait until an agent is ready again."""
        if self.killed < self.kills * share_of_jobs_requested and time.monotonic() >= self._next_at:
            self._kill()
            self._next_at = time.monotonic() + self.rng.uniform(*KILL_INTERVAL_S)

    def _kill(self) -> None:
        ways: dict[Callable[[], str], int] = {
            self._kill_agent: 3,
            self._kill_at_crash_point: 4,
            self._kill_agent_without_database: 1,
            self._kill_any: 8,
        }
        way = self.rng.choices(list(ways), weights=list(ways.values()))[0]
        ready, started = len(self.system.lab.log_events("agent_ready")), time.monotonic()
        killed = way()
        if not killed:
            return
        self.done[killed] += 1
        if killed in KILLS_OF_THE_AGENT:
            self._wait_until_ready(ready + 1)
            if killed != "agent without database":
                self.recovery_s.append(time.monotonic() - started)

    def _wait_until_ready(self, count: int) -> None:
        """Wait until an agent is ready. Meanwhile, end the faults whose time is over. Raises TimeoutError."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while len(self.system.lab.log_events("agent_ready")) < count:
            self.troubles.end_due()
            self.call_while_waiting()
            if time.monotonic() > deadline:
                log = self.system.lab.log_file.read_text(encoding="utf-8", errors="replace")
                raise TimeoutError(f"no agent was ready within {READY_TIMEOUT_S:.0f} s:\n{log[-3000:]}")
            time.sleep(0.1)

    def _kill_agent(self) -> str:
        self.system.agent().send_signal(signal.SIGKILL)
        return "agent"

    def _kill_at_crash_point(self) -> str:
        died = len(self.system.lab.log_events("agent_exited"))
        self.system.set_crashes({"point": self.rng.choice(crash_points.POINTS), "subject": None, "times": 1})
        deadline = time.monotonic() + CRASH_TIMEOUT_S
        while time.monotonic() < deadline:
            if len(self.system.lab.log_events("agent_exited")) > died:
                return "agent at a named point"
            self.call_while_waiting()
            time.sleep(0.05)
        self.system.set_crashes()  # no process reached the crash point
        return "agent at a named point" if len(self.system.lab.log_events("agent_exited")) > died else ""

    def _kill_agent_without_database(self) -> str:
        """Kill the agent while the database does not answer, so that the next agent starts without it."""
        if not self.troubles.make_database_unavailable():
            return ""
        self._kill_agent()
        return "agent without database"

    def _kill_any(self) -> str:
        """Kill a process of a random kind. Kinds are chosen, not processes, because a run has more than one process."""
        kinds = processes_by_kind(self.system.lab.executor.pid)
        if not kinds:
            return ""
        kind = self.rng.choice(sorted(kinds))
        with contextlib.suppress(psutil.NoSuchProcess):
            self.rng.choice(kinds[kind]).kill()
        if kind == "supervisor":
            self.system.lab.executor.wait()
            self.system.lab.start_executor()
        return kind
