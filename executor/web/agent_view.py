"""Gives the HTTP pages access to the agent, through a handle that is empty until the agent exists."""

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
    """The parts of one agent that the pages read."""

    boot_id: str  #: identifies this start of the agent process in the database
    settings: Settings
    state: AgentState
    scheduler: Scheduler
    engine: Engine
    proxmox: ProxmoxReader
    meters: Meters
    memory_mib: Callable[[], float]  #: resident memory of the agent and its descendants
    drift: Callable[[], dict[str, int]] = dict  #: open drift findings by kind; empty without a recent check


class AgentHandle:
    """Holds the agent that the pages read. It is empty until `attach` is called."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attached: tuple[AgentView, Prober] | None = None
        self.waits_for = ""  #: what the agent's start waits for; '' if it waits for nothing
        self.port = 0  #: TCP port of the pages; 0 if they are not served

    @property
    def attached(self) -> tuple[AgentView, Prober] | None:
        """The agent and its prober; None before `attach`."""
        return self._attached

    def note_waiting(self, reason: str) -> None:
        """Record what the agent's start waits for."""
        self.waits_for = reason

    def attach(self, view: AgentView, *, probe_interval_s: float | None = None) -> None:
        """Make the pages read this agent, and start its prober."""
        prober = Prober(
            state=view.state,
            engine=view.engine,
            proxmox=view.proxmox,
            boot_id=view.boot_id,
            folders={"data": view.settings.smith_data_dir, "run": view.settings.smith_run_dir},
        )
        if probe_interval_s is not None:
            prober.interval_s = probe_interval_s
        with self._lock:
            self._attached = (view, prober)
        prober.start()

    def close(self) -> None:
        """Stop the prober."""
        if self._attached is not None:
            self._attached[1].stop()
