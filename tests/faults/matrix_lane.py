"""One system in which the kill matrix tests one cell after the other.

A cell is an action, a point of its job and a kind of process. The job is held at the point, the processes of the
kind are looked up in the running tree, one of them is killed with SIGKILL, and the job is released. Then the job must
end as `expected_outcome` says, and FulcrumCore, our database and Proxmox must agree.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from faults.history import Allowed, violations
from faults.matrix_points import Point
from faults.processes import Kinds, processes_by_kind, processes_of_folder
from faults.system import SystemUnderTest, running_system
from smith_lab.system import outcome_of, wait_for

Json = dict[str, Any]
ACTIONS = ("create", "start", "update", "delete")
#: The agent's periodic tasks that send requests to Proxmox run rarely, so that the held request is one of the job.
SETTINGS = {
    "SMITH_RECONCILE_INTERVAL_S": "3600",
    "SMITH_METRICS_INTERVAL_S": "3600",
    "SMITH_CONCURRENCY": "2",
    "SMITH_LEASE_S": "6",
    "FULCRUM_POLL_INTERVAL_S": "0.2",
}
TIME_SCALE = 0.02
HOLD_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 120.0
#: How long the first server of warm runs of an agent takes to start.
WARM_SERVER_TIMEOUT_S = 4.0
#: Promise R7: no process of a run is alive this long after its end.
ORPHAN_WAIT_S = 8.0


class NotReached(Exception):
    """The job has ended without reaching the point, or no process of the kind ran there."""


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    warm: str  #: the value of SMITH_WARM: "auto" or "off"
    action: str
    point: Point
    kind: str

    def __str__(self) -> str:
        return f"{self.action} | {self.point} | {self.kind}"


def expected_outcome(_cell: Cell) -> str:
    """Return how the cell's job must end.

    Each job is attempted again after any single kill, and its second attempt finds what the first one has changed. So
    no job may fail, even with a correct error code.
    """
    return "Completed"


@dataclass
class Lane:
    """A running system, and its services without an open job, by their status."""

    system: SystemUnderTest
    rng: random.Random
    _idle_services: dict[str, list[str]] = field(default_factory=lambda: {"Stopped": [], "Started": []})
    _count: int = 0

    def run_undisturbed(self, action: str) -> None:
        """Run one job of the action without a fault, so that Proxmox's log shows its requests."""
        service_id = self._take_or_create_service(action)
        self.system.lab.proxmox.reset_request_log()
        service_id = self._request(action, service_id)
        self._wait_for_end(service_id)
        self._store_idle_service(service_id)

    def test_cell(self, action: str, point: Point, kind: str | None) -> tuple[Kinds, str, list[str]]:
        """Test one cell; return the kinds at its point, the kind that was killed, and what deviates.

        Without a kind, the first of the kinds at the point is used. Raises NotReached.
        """
        self._ensure_warm_server()
        service_id = self._take_or_create_service(action)
        self.system.lab.proxmox.reset_request_log()
        point.arm(self.system)
        try:
            service_id = self._request(action, service_id)
            job_id = str(self.system.last_job(service_id)["id"])
            self._wait_until_held(point, service_id, job_id)
            kinds = processes_by_kind(self.system.lab.executor.pid)
            victim_kind = kind or min(kinds)
            if victim_kind not in kinds:
                raise NotReached(f"no process of the kind {victim_kind}: {sorted(kinds)}")
            ready_before = len(self.system.lab.log_events("agent_ready"))
            self._kill(self.rng.choice(kinds[victim_kind]), victim_kind)
        finally:
            point.release(self.system)
        if victim_kind in ("supervisor", "agent"):
            self.system.wait_for_log("agent_ready", ready_before + 1)
        return kinds, victim_kind, self._find_deviations(action, point, victim_kind, service_id)

    def _ensure_warm_server(self) -> None:
        """Restart the executor if it has no server of warm runs: it would start one only after a backoff."""
        if self.system.lab.settings["SMITH_WARM"] == "off":
            return
        with contextlib.suppress(TimeoutError):
            self.system.wait_until(self.system.warm_servers, "a server of warm runs", WARM_SERVER_TIMEOUT_S)
            return
        started = len(self.system.lab.log_events("warm_server_started"))
        self.system.lab.stop_executor(30)
        self.system.start()
        self.system.wait_for_log("warm_server_started", started + 1)

    # --- the job ------------------------------------------------------------------------------------------------------

    def _take_or_create_service(self, action: str) -> str | None:
        """Return a service that the action can be requested for; create it if there is none. None for a create."""
        if action == "create":
            return None
        wanted = {"start": ("Stopped",), "update": ("Stopped", "Started"), "delete": ("Started",)}[action]
        for status in wanted:
            if self._idle_services[status]:
                return self._idle_services[status].pop()
        if wanted == ("Started",):
            stopped = self._take_or_create_service("start")
            assert stopped is not None
            self._request("start", stopped)
            self._wait_for_end(stopped)
            return stopped
        created = self._request("create", None)
        self._wait_for_end(created)
        return created

    def _request(self, action: str, service_id: str | None) -> str:
        self._count += 1
        admin = self.system.lab.admin
        if service_id is None:
            return self.system.order_service(f"cell-{self._count}")
        if action == "update":
            admin.patch_service(service_id, {"tags": [f"t{self._count}"]})
        elif action == "delete":
            admin.delete_service(service_id)
        else:
            admin.request_action(service_id, action)
        return service_id

    def _store_idle_service(self, service_id: str) -> None:
        status = self.system.lab.admin.get_service(service_id)["status"]
        if status in self._idle_services:
            self._idle_services[status].append(service_id)

    def _wait_for_end(self, service_id: str) -> None:
        self.system.lab.wait_for_jobs(service_id, SETTLE_TIMEOUT_S)
        self.system.wait_until(self.system.is_idle, "all jobs to be reported", SETTLE_TIMEOUT_S)

    def _wait_until_held(self, point: Point, service_id: str, job_id: str) -> None:
        """Wait until the job is held at the point. Raises NotReached if it ends before."""
        job_table = self.system.lab.core.server.store.jobs

        def is_held_or_ended() -> bool:
            return point.is_holding(self.system) or job_table[job_id].status in ("Completed", "Failed")

        wait_for(is_held_or_ended, HOLD_TIMEOUT_S, f"{point} of job {job_id}", 0.03)
        if not point.is_holding(self.system):
            self.system.wait_until(lambda: point.is_holding(self.system) or self.system.is_idle(), "the report", 30)
        if not point.is_holding(self.system):
            point.release(self.system)
            self._wait_for_end(service_id)
            self._store_idle_service(service_id)
            raise NotReached(f"the job did not reach {point}")

    def _kill(self, victim: psutil.Process, kind: str) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
        if kind == "supervisor":
            self.system.lab.executor.wait()
            self.system.lab.start_executor()

    # --- the check ----------------------------------------------------------------------------------------------------

    def _find_deviations(self, action: str, point: Point, kind: str, service_id: str) -> list[str]:
        """Wait until the job has ended; return how the end differs from the expected one."""
        cell = Cell(self.system.lab.settings["SMITH_WARM"], action, point, kind)
        try:
            self._wait_for_end(service_id)
        except TimeoutError as late:
            return [str(late), self.system.lab.log_file.read_text()[-2000:]]
        found = [*self._find_wrong_outcome(cell, service_id), *self._find_orphans()]
        found += violations(self.system.facts(), Allowed())
        self._store_idle_service(service_id)
        return found

    def _find_wrong_outcome(self, cell: Cell, service_id: str) -> Iterator[str]:
        outcome = outcome_of(self.system.last_job(service_id))
        if not outcome.startswith(expected_outcome(cell)):
            yield f"the job ended as {outcome}, expected {expected_outcome(cell)}"
        vms, vms_expected = self.system.lab.guests_of(service_id), 0 if cell.action == "delete" else 1
        if outcome == "Completed" and len(vms) != vms_expected:
            yield f"{len(vms)} VMs, expected {vms_expected}"

    def _find_orphans(self) -> Iterator[str]:
        """Yield the processes of runs that are alive although no job is open, and servers outside the tree."""
        deadline = time.monotonic() + ORPHAN_WAIT_S
        while (orphans := self._processes_without_job()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in orphans:
            with contextlib.suppress(psutil.Error):
                yield f"R7 orphan process: {process.pid} {process.cmdline()}"

    def _processes_without_job(self) -> list[psutil.Process]:
        run_folder = self.system.lab.folder / "run"
        in_tree = {process for group in processes_by_kind(self.system.lab.executor.pid).values() for process in group}
        servers = processes_of_folder(run_folder, with_servers=True)
        return [process for process in servers if process not in in_tree] + processes_of_folder(run_folder)


@contextmanager
def running_lane(folder: Path, warm: str, seed: int) -> Iterator[Lane]:
    """Run a system whose runs are warm or cold; its executor is ready at the start of the block."""
    with running_system(folder, time_scale=TIME_SCALE, SMITH_WARM=warm, **SETTINGS) as system:
        system.start()
        try:
            if warm == "auto":
                system.wait_for_log("warm_server_started")
            yield Lane(system, random.Random(seed))  # noqa: S311 (chooses one of several processes of a kind)
        finally:
            system.lab.stop_executor(30)
