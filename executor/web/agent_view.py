"""What the pages look at: one agent's parts, and while there is no agent yet, why."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.agent.meters import Meters
from executor.agent.scheduler import Scheduler
from executor.agent.state import AgentState
from executor.proxmox.client import ProxmoxReader
from executor.settings.settings import Settings
from executor.web.probes import Prober

if TYPE_CHECKING:
    from sqlalchemy import Engine


@dataclass(frozen=True, kw_only=True)
class AgentView:
    """One life of one agent, as the pages see it."""

    boot_id: str
    settings: Settings
    state: AgentState
    scheduler: Scheduler
    engine: Engine
    proxmox: ProxmoxReader
    meters: Meters
    memory_mib: Callable[[], float]
    drift: Callable[[], dict[str, int]] = dict  #: what differs by kind; empty when nobody has looked lately


class AgentHandle:
    """Holds the agent to look at, once there is one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: tuple[AgentView, Prober] | None = None
        self.waits_for = ""  #: why there is no agent yet
        self.port = 0  #: where the pages are, 0 for nowhere

    @property
    def watched(self) -> tuple[AgentView, Prober] | None:
        """The agent and what its prober has found, None until it is shown."""
        return self._watched

    def note_waiting(self, reason: str) -> None:
        """Say what the start waits for."""
        self.waits_for = reason

    def show(self, watched: AgentView, *, probe_interval_s: float | None = None) -> None:
        """Look at this agent from now on."""
        prober = Prober(
            state=watched.state,
            engine=watched.engine,
            proxmox=watched.proxmox,
            boot_id=watched.boot_id,
            folders={"data": watched.settings.smith_data_dir, "run": watched.settings.smith_run_dir},
        )
        if probe_interval_s is not None:
            prober.interval_s = probe_interval_s
        with self._lock:
            self._watched = (watched, prober)
        prober.start()

    def close(self) -> None:
        """End the prober."""
        if self._watched is not None:
            self._watched[1].stop()
