"""The system under test: simulator, stand-in and executor. It can inject faults, and make the final check of a test."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
from faults.history import Allowed, violations
from faults.processes import RUN_VARIABLE, WARM_SERVERS_IDENT, environment, tree
from smith_lab.system import LabSystem, outcome_of, run_lab_system, wait_for
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from executor.agent import crash_points

Json = dict[str, Any]
T = TypeVar("T")
#: How long a test waits for all jobs to end after its fault.
IDLE_TIMEOUT_S = 200.0
LOOPBACK = "127.0.0.1"
#: VMs of other owners inside our VMID range. Nothing may change them.
FOREIGN_VMIDS = (100_100, 150_000, 199_900)


@dataclass(kw_only=True)
class SystemUnderTest:
    """Simulator, stand-in and executor, with methods that inject faults."""

    lab: LabSystem
    services: list[str] = field(default_factory=list)  #: all that were ordered with order_service
    reused_vmids: set[int] = field(default_factory=set)  #: VMIDs that a test reused for another VM
    services_without_vm: set[str] = field(default_factory=set)  #: services whose VM a test removed
    timed_out: set[str] = field(default_factory=set)  #: jobs that a test made FulcrumCore time out

    # --- actions ---------------------------------------------------------------------------------------------

    def start(self, *arguments: str) -> None:
        """Start the executor and wait until it claims jobs."""
        ready = len(self.lab.log_events("agent_ready"))
        self.lab.start_executor(*arguments)
        self.wait_until(lambda: len(self.lab.log_events("agent_ready")) > ready, "the executor to be ready", 60)

    def order_service(self, name: str, **properties: Any) -> str:
        """Order a service in a group of its own."""
        service_id = self.lab.order_service(name, **properties)
        self.services.append(service_id)
        return service_id

    def create_vm(self, name: str, *, started: bool = False) -> str:
        """Order a service and wait until its VM exists; return the service's id."""
        service_id = self.order_service(name)
        assert self.lab.wait_for_jobs(service_id, IDLE_TIMEOUT_S)["status"] == "Stopped"
        if started:
            assert outcome_of(self.lab.run_action(service_id, "start", IDLE_TIMEOUT_S)) == "Completed"
        return service_id

    def wait_for_jobs(self, service_id: str) -> Json:
        """Wait until the service has no open job; return the service."""
        return self.lab.wait_for_jobs(service_id, IDLE_TIMEOUT_S)

    def last_job(self, service_id: str) -> Json:
        return self.lab.last_job(service_id)

    def job_of(self, service_id: str, action: str) -> Json:
        """Return the service's only job of an action."""
        (job,) = [job for job in self.lab.admin.list_jobs(service_id) if job["action"] == action]
        return job

    def request_near_the_deadline(self, service_id: str, action: str) -> None:
        """Request an action whose job is four and a half minutes old for FulcrumCore, so that half a minute is left."""
        self.lab.core.advance(-270)
        self.lab.admin.request_action(service_id, action)
        self.lab.core.advance(270)

    def expire_last_job(self, service_id: str) -> str:
        """Have FulcrumCore time out the service's last job; return the job's id."""
        job_id = str(self.last_job(service_id)["id"])
        self.lab.core.expire_job(job_id)
        self.timed_out.add(job_id)
        return job_id

    def remove_vm(self, service_id: str, *, recycle: bool = False) -> int:
        """Remove the service's VM in Proxmox, or replace it by another owner's VM; return the VMID."""
        vmid = int(self.vm_of(service_id)["vmid"])
        self.lab.proxmox.control("recycle" if recycle else "remove", vmid=vmid)
        self.services_without_vm.add(service_id)
        if recycle:
            self.reused_vmids.add(vmid)
            self.lab.proxmox.reset_request_log()  # earlier requests for this VMID were allowed
        return vmid

    def drift(self) -> Json:
        """Return the document of `smith drift`, whatever its exit code."""
        found: Json = self.lab.run_smith_json("drift", exit_codes=(0, 1, 5))
        return found

    def vm_of(self, service_id: str) -> Json:
        """Return the only VM with the service's marker."""
        (vm,) = self.lab.guests_of(service_id)
        return vm

    def clone_requests(self) -> list[Json]:
        """Return the clone requests that Proxmox has received."""
        return [call for call in self.lab.proxmox.changing_requests() if call["path"].endswith("/clone")]

    def clone_requests_of(self, service_id: str) -> list[Json]:
        """Return the clone requests for a service's VM, whose name ends in the first digits of the service's id."""
        return [call for call in self.clone_requests() if call["params"]["name"].endswith(service_id[:8])]

    def wait_until(self, condition: Callable[[], T | None], what: str, within_s: float = IDLE_TIMEOUT_S) -> T:
        return wait_for(condition, within_s, what)

    def wait_for_log(self, event: str, count: int = 1) -> list[Json]:
        """Wait until the executor has logged an event at least `count` times; return these events."""
        return self.wait_until(
            lambda: found if len(found := self.lab.log_events(event)) >= count else None, f"{count} x {event}"
        )

    # --- processes ------------------------------------------------------------------------------------------------

    def agent(self) -> psutil.Process:
        """Return the agent process under the supervisor."""
        supervisor = psutil.Process(self.lab.executor.pid)

        def find() -> psutil.Process | None:
            return next((child for child in supervisor.children() if "agent-process" in child.cmdline()), None)

        return self.wait_until(find, "the agent process", 30)

    def kill_agent(self) -> None:
        """Kill the agent with SIGKILL and wait until its successor is ready."""
        ready = len(self.lab.log_events("agent_ready"))
        self.agent().send_signal(signal.SIGKILL)
        self.wait_for_log("agent_ready", ready + 1)

    def run_processes(self) -> list[psutil.Process]:
        """Return the processes that belong to playbook runs of this executor."""
        return [
            process
            for process in self._ansible_processes()
            if environment(process).get(RUN_VARIABLE) != WARM_SERVERS_IDENT
        ]

    def warm_servers(self) -> list[psutil.Process]:
        """Return the servers from which warm runs are forked."""
        return [
            process
            for process in self._ansible_processes()
            if environment(process).get(RUN_VARIABLE) == WARM_SERVERS_IDENT
        ]

    def _ansible_processes(self) -> list[psutil.Process]:
        return [process for process in tree(self.lab.executor.pid) if environment(process).get(RUN_VARIABLE)]

    @contextmanager
    def crashing(self, point: str, *, service_id: str | None = None, times: int = 1) -> Iterator[None]:
        """Crash the agent at a named crash point, and check that it crashed."""
        assert point in crash_points.POINTS
        self.set_crashes({"point": point, "subject": service_id, "times": times})
        exits_before = len(self.lab.log_events("agent_exited"))
        yield
        self.wait_for_log("agent_exited", exits_before + times)
        assert all(not crash_request["times"] for crash_request in self.pending_crashes()), (
            "the agent never reached the crash point"
        )

    def set_crashes(self, *crash_requests: Json) -> None:
        """Replace the list of crash points at which the agent is to crash."""
        draft = self.crash_file.with_suffix(".new")
        draft.write_text(json.dumps(list(crash_requests)))
        draft.replace(self.crash_file)

    def pending_crashes(self) -> list[Json]:
        found: list[Json] = json.loads(self.crash_file.read_text())
        return found

    @property
    def crash_file(self) -> Path:
        return self.lab.folder / "crash.json"

    def clear_faults(self) -> None:
        """End all faults."""
        if not self.lab.core.server.is_running:
            self.lab.core.resume()
        self.lab.core.clear_faults()
        self.lab.proxmox.control("clear_faults")
        self.set_crashes()

    # --- the final check: FulcrumCore, our database and Proxmox must agree --------------------------------------------

    def rows(self, query: str, *values: Any) -> list[Json]:
        """Query the executor's database, while the executor may write to it."""
        names = (f":v{number}" for number in itertools.count())
        named_query = re.sub(r"\?", lambda _: next(names), query)
        with _engine(self.database_url).connect() as connection:
            found = connection.execute(text(named_query), {f"v{number}": value for number, value in enumerate(values)})
            return [dict(row) for row in found.mappings()]

    @property
    def database_url(self) -> str:
        """Return the address of the executor's database, read-only for SQLite."""
        sqlite = f"sqlite:///file:{self.lab.data_dir / 'smith.db'}?mode=ro&uri=true"
        return self.lab.settings.get("SMITH_DATABASE_URL", sqlite)

    def assert_consistent(self) -> None:
        """Wait until all jobs have ended, then check that FulcrumCore, our database and Proxmox agree."""
        self.wait_until(self.is_idle, "all jobs to end and be reported")
        allowed = Allowed(lost_services=frozenset(self.services_without_vm), timed_out_jobs=frozenset(self.timed_out))
        found = violations(self.facts(), allowed)
        assert found == [], "\n".join(found)

    def is_idle(self) -> bool:
        """Whether no job is open at FulcrumCore, and none of our rows is open or has a report due."""
        jobs = self.lab.admin.list_all("jobs")
        if any(job["status"] in ("Pending", "Processing") for job in jobs):
            return False
        open_rows = "SELECT 1 FROM jobs WHERE status IN ('pending', 'processing') OR report_state = 'due'"
        return not self.rows(open_rows)

    def facts(self, calls: list[Json] | None = None, requests: list[Json] | None = None) -> Json:
        """Return the state of each side, for `history.violations`.

        Without `calls`, the simulator's history is used; without `requests`, the stand-in's log.
        """
        return {
            "core": {"services": self.lab.admin.list_services(), "jobs": self.lab.admin.list_all("jobs")},
            "calls": self.lab.core.history(method="POST") if calls is None else calls,
            "rows": {name: self.rows(f"SELECT * FROM {name}") for name in ("jobs", "mappings")},  # noqa: S608
            "guests": self.lab.proxmox.guests(),
            "requests": self.lab.proxmox.request_log() if requests is None else requests,
            "foreign_vmids": {*FOREIGN_VMIDS, *self.reused_vmids},
        }


@functools.cache
def _engine(url: str) -> Engine:
    """Return an engine that keeps no connection: a test may delete the file or restart the server."""
    return create_engine(url, poolclass=NullPool)


@contextmanager
def running_system(
    folder: Path,
    *,
    time_scale: float = 0.0,
    fulcrum_base_url: str | None = None,
    core_host: str = LOOPBACK,
    proxmox_host: str = LOOPBACK,
    **settings: str,
) -> Iterator[SystemUnderTest]:
    """Run simulator and stand-in with VMs of other owners inside our VMID range; the caller starts the executor.

    Simulator and stand-in listen on `core_host` and `proxmox_host`. With `fulcrum_base_url`, this new FulcrumCore is
    used instead of a simulator.
    """
    crash_file = folder / "crash.json"
    crash_file.write_text("[]")
    wanted = {crash_points.CRASH_FILE_VARIABLE: str(crash_file), **settings}
    with run_lab_system(
        folder,
        time_scale=time_scale,
        settings=wanted,
        fulcrum_base_url=fulcrum_base_url,
        core_host=core_host,
        proxmox_host=proxmox_host,
    ) as lab:
        for vmid in FOREIGN_VMIDS:
            lab.proxmox.control("add", vmid=vmid, name=f"foreign-{vmid}", status="running", config={"cores": 1})
        try:
            yield SystemUnderTest(lab=lab)
        finally:
            _resume_suspended(lab)


@contextmanager
def second_executor(system: SystemUnderTest, name: str = "second", **settings: str) -> Iterator[SystemUnderTest]:
    """Run a second executor on the same database, with these settings."""
    folder = system.lab.folder / name
    folder_settings = {"SMITH_DATA_DIR": str(folder / "data"), "SMITH_RUN_DIR": str(folder / "run")}
    lab = system.lab.copy_for_another_executor(folder, **folder_settings | settings)
    node = SystemUnderTest(lab=lab)
    node.start()
    try:
        yield node
    finally:
        lab.stop_executor()


def _resume_suspended(lab: LabSystem) -> None:
    """Resume every process of the executor: a test may fail while a process is suspended."""
    if lab._executor is None:
        return
    for process in tree(lab._executor.pid):
        try:
            os.kill(process.pid, signal.SIGCONT)
        except ProcessLookupError:
            continue
