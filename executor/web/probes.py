"""Checks in the background whether Proxmox answers, the database can be written, and enough disk space is free.

Each of these checks is a probe. One thread runs all probes in rounds, every 30 s. The web pages show the results of
the last round, so a web page does not wait for a probe.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from executor.agent import disk_space
from executor.agent.state import AgentState, CurrentPause, Link, proxmox_log_functions
from executor.database import agent_queries, nodes
from executor.database.engine import transaction
from executor.errors import DatabaseError, JobError
from executor.log import get_logger
from executor.proxmox.client import ProxmoxReader
from executor.redaction import redactor
from executor.shared.error_codes import ErrorCode

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Wait between two rounds. A round runs every probe once.
INTERVAL_S = 30.0
#: A result is outdated if its age in seconds is more than MAX_AGE_INTERVALS * interval + MAX_ROUND_S.
MAX_AGE_INTERVALS = 4
#: The assumed maximum duration of a round, for the formula above. It is no timeout: no probe is stopped after it.
MAX_ROUND_S = 60.0
#: Interval at which the thread checks whether the agent's loops, such as the loop that claims jobs, have started. The
#: first round waits for this, because the agent may migrate the schema of the database before it starts the loops.
START_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The result of one probe."""

    ok: bool
    #: Describes the problem; '' if there is no problem. Contains no hosts and paths, because the health pages show it
    #: without a login.
    reason: str = ""
    detail: str = ""  #: further explanation of the problem, may quote the error text of another program
    finished_at: float = field(default_factory=time.monotonic)  #: end of the probe, on the monotonic clock


class _ProbeFailed(Exception):
    """Raised by a probe that finds a problem."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


@dataclass(kw_only=True)
class Prober:
    """Runs the probes and keeps their results."""

    state: AgentState  #: what the threads of the agent process share, such as an operator's pause of all agents
    engine: Engine
    proxmox: ProxmoxReader
    #: The random id of this agent process (not of the machine). The table `nodes` has one row for each agent process.
    boot_id: str
    #: The folders whose free space is checked: `data` (database and artifacts) and `run` (files of running playbooks).
    folders: Mapping[str, Path]
    interval_s: float = INTERVAL_S
    _results: dict[str, ProbeResult] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    # A Link records whether an outside system answers. This Link logs each outage and each recovery of Proxmox.
    _proxmox_link: Link = field(default_factory=lambda: Link(proxmox_log_functions()))

    @property
    def probes(self) -> dict[str, Callable[[], None]]:
        """The functions of the probes, keyed by the name of the probe."""
        # The order matters: the probe of the database stores the result of the probe of Proxmox.
        return {"proxmox": self._probe_proxmox, "database": self._probe_database, "disk": self._probe_disk}

    def result(self, name: str) -> ProbeResult:
        """Return the last result of this probe. If it is missing or outdated, return a result that is not ok."""
        last_result = self._results.get(name)
        if last_result is None:
            return ProbeResult(ok=False, reason="not checked yet")
        age_s = time.monotonic() - last_result.finished_at
        if age_s > self.interval_s * MAX_AGE_INTERVALS + MAX_ROUND_S:
            return ProbeResult(ok=False, reason="not checked recently", detail=f"for {age_s:.0f} s")
        return last_result

    def start(self) -> None:
        """Start the thread. It runs the first round after the agent's loops have started."""
        self._thread = threading.Thread(target=self._run, name="probes", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Make the thread end after the current round. Do not wait for the end."""
        self._stopping.set()

    def free_bytes(self, name: str) -> int:
        """Return the free space, in bytes, of the folder with this name. Raises OSError."""
        return disk_space.free_bytes(self.folders[name])

    def _run(self) -> None:
        # The dictionary `iteration_started_at` has the start time of the last iteration of each of the agent's loops.
        while not self.state.iteration_started_at:  # no loop has started
            if self._stopping.wait(START_POLL_S):
                return
        while not self._stopping.is_set():
            for name, probe in self.probes.items():
                self._results[name] = _run_probe(probe)
            self._stopping.wait(self.interval_s)

    def _probe_proxmox(self) -> None:
        """Request the version of Proxmox."""
        try:
            self.proxmox.version()
        except JobError as error:
            # PVE_AUTH: Proxmox has refused the API token.
            self._proxmox_link.record_failed_call(str(error), has_refused_credentials=error.code is ErrorCode.PVE_AUTH)
            raise _ProbeFailed("Proxmox does not answer, or answers with an error", str(error)) from error
        self._proxmox_link.record_answer()

    def _probe_database(self) -> None:
        """Write the result of the probe of Proxmox, and the current time, into the row of this agent process.

        A probe that only reads would not suffice: a database on a full disk, or a standby server, can still be read.
        The probe also reads whether an operator has paused the agents, and stores this in `AgentState`.
        """
        proxmox_result = self._results.get("proxmox")
        proxmox_error = None
        if proxmox_result is not None and not proxmox_result.ok:
            proxmox_error = redactor.redact(proxmox_result.detail or proxmox_result.reason)
        try:
            with transaction(self.engine) as session:
                nodes.store_proxmox_check(session, self.boot_id, proxmox_error=proxmox_error)
                pause = agent_queries.find_pause(session)
                current_pause = (
                    None if pause is None else CurrentPause(since=pause.since, who=pause.who, reason=pause.reason)
                )
        except DatabaseError as error:
            raise _ProbeFailed("the database cannot be written", str(error).splitlines()[0]) from error
        self.state.record_pause(current_pause)

    def _probe_disk(self) -> None:
        """Check whether each folder has enough free space."""
        shortage_by_folder = disk_space.describe_shortages(self.folders)
        if shortage_by_folder:
            folders = " and ".join(f"the folder {name}" for name in shortage_by_folder)
            raise _ProbeFailed(f"too little space in {folders}", "; ".join(shortage_by_folder.values()))


def _run_probe(probe: Callable[[], None]) -> ProbeResult:
    """Run a probe and return its result. Raises nothing."""
    try:
        probe()
    except _ProbeFailed as failure:
        return ProbeResult(ok=False, reason=failure.reason, detail=redactor.redact(failure.detail))
    except Exception as error:
        # An unexpected exception must not end the thread. So it is logged here, and the result is not ok.
        log.exception("probe_crashed")
        return ProbeResult(ok=False, reason="the check failed unexpectedly, see the log", detail=type(error).__name__)
    return ProbeResult(ok=True)
