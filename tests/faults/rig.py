"""The whole system under fault: what a test does to it, and the proof that all three sides agree afterwards."""

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
from smith_lab.system import LabSystem, outcome_of, running_lab, wait_for
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from executor.agent import crash_points

Json = dict[str, Any]
T = TypeVar("T")
#: How long a test waits for the system to come to rest after its fault.
REST_S = 200.0
#: Whoever is not ours: VMs in the middle of our range that nothing may ever touch.
STRANGER_VMIDS = (100_100, 150_000, 199_900)
#: Whatever a run starts carries this.
RUN_MARK = "SMITH_RUN_IDENT"
#: What it says in the servers of warm runs.
SERVERS_MARK = "warm"


@dataclass(kw_only=True)
class Rig:
    """Simulator, stand-in and executor, with the means to hurt them."""

    lab: LabSystem
    services: list[str] = field(default_factory=list)  #: everything that was ordered here
    recycled: set[int] = field(default_factory=set)  #: VMIDs that a test gave to somebody else
    lost: set[str] = field(default_factory=set)  #: services whose VM a test took away
    timed_out: set[str] = field(default_factory=set)  #: jobs that a test let FulcrumCore give up

    # --- what happens ---------------------------------------------------------------------------------------------

    def start(self, *arguments: str) -> None:
        """Start the executor and wait until it claims."""
        ready = len(self.lab.log_events("agent_ready"))
        self.lab.start_executor(*arguments)
        self.until(lambda: len(self.lab.log_events("agent_ready")) > ready, "the executor to be ready", 60)

    def order(self, name: str, **properties: Any) -> str:
        """Order a service in a group of its own."""
        service_id = self.lab.order(name, **properties)
        self.services.append(service_id)
        return service_id

    def made(self, name: str, *, started: bool = False) -> str:
        """Order a service and wait until its VM is there."""
        service_id = self.order(name)
        assert self.lab.wait_for_jobs(service_id, REST_S)["status"] == "Stopped"
        if started:
            assert outcome_of(self.lab.run_action(service_id, "start", REST_S)) == "Completed"
        return service_id

    def wait_for_jobs(self, service_id: str) -> Json:
        """Wait until nothing is open for the service any more; return it."""
        return self.lab.wait_for_jobs(service_id, REST_S)

    def last_job(self, service_id: str) -> Json:
        return self.lab.last_job(service_id)

    def job_of(self, service_id: str, action: str) -> Json:
        """Return the service's one job of an action."""
        (job,) = [job for job in self.lab.admin.jobs(service_id) if job["action"] == action]
        return job

    def act_late(self, service_id: str, action: str) -> None:
        """Ask for an action as if that had been four and a half minutes ago: half a minute of its time is left."""
        self.lab.core.advance(-270)
        self.lab.admin.action(service_id, action)
        self.lab.core.advance(270)

    def time_out(self, service_id: str) -> str:
        """Let FulcrumCore give the service's last job up; return its id."""
        job_id = str(self.last_job(service_id)["id"])
        self.lab.core.expire_job(job_id)
        self.timed_out.add(job_id)
        return job_id

    def take_away(self, service_id: str, *, recycle: bool = False) -> int:
        """Remove the service's VM behind everybody's back, or put a stranger's in its place; return the VMID."""
        vmid = int(self.vm_of(service_id)["vmid"])
        self.lab.proxmox.control("recycle" if recycle else "remove", vmid=vmid)
        self.lost.add(service_id)
        if recycle:
            self.recycled.add(vmid)
            self.lab.proxmox.reset_request_log()  # what was asked of this VMID before was right
        return vmid

    def drift(self) -> Json:
        """Return what `smith drift` finds, whatever it thinks of it."""
        found: Json = self.lab.smith("drift", codes=(0, 1, 5))
        return found

    def vm_of(self, service_id: str) -> Json:
        """Return the one VM that carries the service's marker."""
        (vm,) = self.lab.vms_of(service_id)
        return vm

    def clones(self) -> list[Json]:
        """Return the clone requests that Proxmox has seen."""
        return [call for call in self.lab.proxmox.changing_requests() if call["path"].endswith("/clone")]

    def clones_of(self, service_id: str) -> list[Json]:
        """Return the clone requests for a service's VM, whose name ends in the service's first digits."""
        return [call for call in self.clones() if call["params"]["name"].endswith(service_id[:8])]

    def until(self, look: Callable[[], T | None], what: str, within_s: float = REST_S) -> T:
        return wait_for(look, within_s, what)

    def logged(self, event: str, count: int = 1) -> list[Json]:
        """Wait until the executor has said something so often."""
        return self.until(
            lambda: found if len(found := self.lab.log_events(event)) >= count else None, f"{count} x {event}"
        )

    # --- processes ------------------------------------------------------------------------------------------------

    def agent(self) -> psutil.Process:
        """Return the agent process under the supervisor."""
        supervisor = psutil.Process(self.lab.executor.pid)

        def look() -> psutil.Process | None:
            return next((child for child in supervisor.children() if "agent-process" in child.cmdline()), None)

        return self.until(look, "the agent process", 30)

    def kill_agent(self) -> None:
        """Pull the plug of the agent, and wait until another one works."""
        ready = len(self.lab.log_events("agent_ready"))
        self.agent().send_signal(signal.SIGKILL)
        self.logged("agent_ready", ready + 1)

    def run_processes(self) -> list[psutil.Process]:
        """Return the processes that belong to playbook runs of this executor."""
        return [process for process in self._marked() if _environment(process).get(RUN_MARK) != SERVERS_MARK]

    def warm_servers(self) -> list[psutil.Process]:
        """Return the servers from which warm runs are forked."""
        return [process for process in self._marked() if _environment(process).get(RUN_MARK) == SERVERS_MARK]

    def _marked(self) -> list[psutil.Process]:
        return [process for process in _family(self.lab.executor.pid) if _environment(process).get(RUN_MARK)]

    @contextmanager
    def crashing(self, point: str, *, service_id: str | None = None, times: int = 1) -> Iterator[None]:
        """Let the agent die at a named point, and see to it that it did."""
        assert point in crash_points.POINTS
        self.arm({"point": point, "subject": service_id, "times": times})
        died = len(self.lab.log_events("agent_exited"))
        yield
        self.logged("agent_exited", died + times)
        assert all(not wish["times"] for wish in self.armed()), "the agent never came to the point"

    def arm(self, *wishes: Json) -> None:
        """Write down where the agent is to die from now on."""
        draft = self.crash_file.with_suffix(".new")
        draft.write_text(json.dumps(list(wishes)))
        draft.replace(self.crash_file)

    def armed(self) -> list[Json]:
        found: list[Json] = json.loads(self.crash_file.read_text())
        return found

    @property
    def crash_file(self) -> Path:
        return self.lab.folder / "crash.json"

    def heal(self) -> None:
        """End every fault."""
        if not self.lab.core.server.running:
            self.lab.core.resume()
        self.lab.core.clear_faults()
        self.lab.proxmox.control("clear_faults")
        self.arm()

    # --- the proof ------------------------------------------------------------------------------------------------

    def rows(self, query: str, *values: Any) -> list[Json]:
        """Ask the executor's database, whoever writes to it meanwhile."""
        names = (f":v{number}" for number in itertools.count())
        named = re.sub(r"\?", lambda _: next(names), query)
        with _engine(self.database_url).connect() as connection:
            found = connection.execute(text(named), {f"v{number}": value for number, value in enumerate(values)})
            return [dict(row) for row in found.mappings()]

    @property
    def database_url(self) -> str:
        """Return where the executor's rows are, for reading."""
        sqlite = f"sqlite:///file:{self.lab.data_dir / 'smith.db'}?mode=ro&uri=true"
        return self.lab.settings.get("SMITH_DATABASE_URL", sqlite)

    def prove(self) -> None:
        """Wait until everything is at rest, then show that FulcrumCore, our database and Proxmox agree."""
        self.until(self.is_at_rest, "all jobs to end and be reported")
        allowed = Allowed(lost_services=frozenset(self.lost), timed_out_jobs=frozenset(self.timed_out))
        found = violations(self.facts(), allowed)
        assert found == [], "\n".join(found)

    def is_at_rest(self) -> bool:
        """True when no job is open at FulcrumCore, and none of ours waits or is to be reported."""
        jobs = self.lab.admin.list_all("jobs")
        if any(job["status"] in ("Pending", "Processing") for job in jobs):
            return False
        open_rows = "SELECT 1 FROM jobs WHERE status IN ('pending', 'processing') OR report_state = 'due'"
        return not self.rows(open_rows)

    def facts(self) -> Json:
        """Return what each side says of itself."""
        return {
            "core": {"services": self.lab.admin.list_services(), "jobs": self.lab.admin.list_all("jobs")},
            "calls": self.lab.core.history(method="POST"),
            "rows": {name: self.rows(f"SELECT * FROM {name}") for name in ("jobs", "mappings")},  # noqa: S608
            "guests": self.lab.proxmox.guests(),
            "requests": self.lab.proxmox.request_log(),
            "strangers": {*STRANGER_VMIDS, *self.recycled},
        }


@functools.cache
def _engine(url: str) -> Engine:
    """Return an engine that keeps no connection: the file may be deleted, and the server restarted."""
    return create_engine(url, poolclass=NullPool)


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


@contextmanager
def running_rig(folder: Path, *, time_scale: float = 0.0, **settings: str) -> Iterator[Rig]:
    """Run simulator and stand-in with some strangers among our VMIDs; the caller starts the executor."""
    crash_file = folder / "crash.json"
    crash_file.write_text("[]")
    wanted = {crash_points.VARIABLE: str(crash_file), **settings}
    with running_lab(folder, time_scale=time_scale, settings=wanted) as lab:
        for vmid in STRANGER_VMIDS:
            lab.proxmox.control("add", vmid=vmid, name=f"stranger-{vmid}", status="running", config={"cores": 1})
        try:
            yield Rig(lab=lab)
        finally:
            _end_paused(lab)


def _end_paused(lab: LabSystem) -> None:
    """A test that fails while it holds a process stopped must not hang on it."""
    if lab._executor is None:
        return
    for process in (lab._executor.pid, *(child.pid for child in _family(lab._executor.pid))):
        try:
            os.kill(process, signal.SIGCONT)
        except ProcessLookupError:
            continue
