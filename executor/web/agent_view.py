"""Gives the HTTP pages access to the agent.

The pages are served before the agent exists. Until then, the handle that the pages use holds no agent.
"""

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
    """The parts of the agent that the pages read."""

    boot_id: str  #: random id of this agent process in the database, new at each start
    settings: Settings
    state: AgentState
    scheduler: Scheduler
    engine: Engine
    proxmox: ProxmoxReader
    meters: Meters  #: counters and histograms that the agent updates itself
    memory_mib: Callable[[], float]  #: resident memory of the agent and its descendants
    #: The number of differences (drift) between mappings, Proxmox and FulcrumCore, by kind. It is empty if the last
    #: comparison is not recent.
    drift: Callable[[], dict[str, int]] = dict


class AgentHandle:
    """Holds the view of the agent that the pages read. It holds no view until `attach` is called."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attached: tuple[AgentView, Prober] | None = None
        self.waits_for = ""  #: why the start of the agent waits; '' if it does not wait
        self.port = 0  #: TCP port of the pages; 0 if the pages are not served

    @property
    def attached(self) -> tuple[AgentView, Prober] | None:
        """The view of the agent, and the prober of its dependencies; None before `attach`."""
        return self._attached

    def note_waiting(self, reason: str) -> None:
        """Record why the start of the agent waits, to show it on the page /readyz."""
        self.waits_for = reason

    def attach(self, view: AgentView, *, probe_interval_s: float | None = None) -> None:
        """Make the pages read this agent, and start its prober. Tests set `probe_interval_s`."""
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
        """Stop the prober, if there is one."""
        if self._attached is not None:
            self._attached[1].stop()
