"""Gives the HTTP pages access to the agent.

The server serves the pages even before the agent is created. So the pages read the agent through a handle, which is
empty until then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.agent.meters import PrometheusMetrics
from executor.agent.scheduler import Scheduler
from executor.agent.state import AgentState
from executor.drift.facts import Finding
from executor.proxmox.client import ProxmoxReader
from executor.settings.settings import Settings
from executor.web.probes import Prober

if TYPE_CHECKING:
    from sqlalchemy import Engine


@dataclass(frozen=True, kw_only=True)
class AgentView:
    """The parts of the agent that the pages read."""

    #: Random id of this agent process, new at each start. It is also the id of the process's row in the table `nodes`,
    #: which contains the agent processes, not the Proxmox nodes.
    boot_id: str
    settings: Settings
    state: AgentState  #: what the agent's threads share: flags, counters, and whether FulcrumCore answers
    scheduler: Scheduler  #: executes the critical jobs (periodic tasks of the agent)
    engine: Engine
    proxmox: ProxmoxReader
    meters: PrometheusMetrics  #: counters and histograms that the agent updates
    measure_memory_mib: Callable[[], float]  #: returns the memory, in MiB, of the agent process and its descendants
    #: Returns the number of differences (drift) of each kind that the last comparison of the mappings with Proxmox and
    #: FulcrumCore found; empty if there is no recent comparison. The default function returns an empty dict.
    count_drift_by_kind: Callable[[], dict[str, int]] = dict
    #: Returns a `Finding` for each difference that the last comparison found; None if there is no recent comparison.
    list_drift_findings: Callable[[], Sequence[Finding] | None] = lambda: None


class AgentHandle:
    """Contains the AgentView that the pages read. The handle is empty until `attach` is called."""

    def __init__(self) -> None:
        self._view_and_prober: tuple[AgentView, Prober] | None = None
        #: Why the starting agent waits for its configuration from FulcrumCore; '' if it does not wait.
        self.start_wait_reason = ""
        self.port = 0  #: TCP port of the pages; 0 if the pages are not served

    @property
    def view_and_prober(self) -> tuple[AgentView, Prober] | None:
        """The AgentView, and the prober that checks Proxmox, database and disk space; None before `attach`."""
        return self._view_and_prober

    def record_wait_reason(self, reason: str) -> None:
        """Record why the agent waits for its configuration from FulcrumCore. The page /readyz shows the reason."""
        self.start_wait_reason = reason

    def attach(self, view: AgentView, *, probe_interval_s: float | None = None) -> None:
        """Make the pages read this view, and start the prober. `probe_interval_s` replaces the prober's interval."""
        prober = Prober(
            state=view.state,
            engine=view.engine,
            proxmox=view.proxmox,
            boot_id=view.boot_id,
            # `smith_data_dir` has the database and the artifacts, `smith_run_dir` the files of running playbooks.
            folders={"data": view.settings.smith_data_dir, "run": view.settings.smith_run_dir},
        )
        if probe_interval_s is not None:
            prober.interval_s = probe_interval_s
        self._view_and_prober = (view, prober)
        prober.start()

    def close(self) -> None:
        """Stop the prober, if there is one."""
        if self._view_and_prober is not None:
            _view, prober = self._view_and_prober
            prober.stop()
