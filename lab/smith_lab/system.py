"""Runs the FulcrumCore simulator, the Proxmox stand-in and Agent Smith, connected over real sockets.

The executor is the program of Agent Smith: the Python package `executor`, with the command `smith`. The demo, the
command `smith lab`, the end-to-end tests and the benchmarks use this module.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from executor.settings.settings import Settings
from executor.shared.marker import marker_values_in
from smith_lab.fulcrum_setup import AdminClient, CreatedObjects, bootstrap
from smith_lab.log_reader import LogReader
from smith_lab.proxmox import stand_in
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from smith_lab.simulator import server as simulator_server
from smith_lab.simulator.control import SimulatorThread, running_simulator

Json = dict[str, Any]
CheckedValue = TypeVar("CheckedValue")

#: The prefixes of the environment variables that are settings of the executor.
SETTING_PREFIXES = ("FULCRUM_", "PROXMOX_", "SMITH_")
# The executor's settings for VM templates, container templates and storage. The stand-in has all of these objects.
VM_TEMPLATES = "debian-12=9000,ubuntu-24.04=9001"
CONTAINER_TEMPLATES = "debian-12=local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"
STORAGE = "local-lvm"
COMMAND_TIMEOUT_S = 60.0
#: The executor's settings in a lab, where they differ from the defaults: short times, a log in JSON, any free port.
LAB_SETTINGS = {
    "PROXMOX_TAGS": "*",  # services may set every tag
    "FULCRUM_POLL_INTERVAL_S": "0.5",
    "FULCRUM_HEARTBEAT_INTERVAL_S": "10",
    "SMITH_SHUTDOWN_TIMEOUT_S": "20",
    "SMITH_LOG_FORMAT": "json",
    "SMITH_HTTP_ADDR": "127.0.0.1:0",  # the system chooses a free port, so several labs can run at once
}


@dataclass(kw_only=True)
class LabSystem:
    """The running simulator, stand-in and executor, with methods that act as a customer or an operator.

    FulcrumCore's word for a customer is consumer. In names, `core` means FulcrumCore.
    """

    folder: Path
    fulcrum_base_url: str  #: the URL of FulcrumCore, without /api/v1
    admin: AdminClient
    #: The ids of the objects that `bootstrap` created in FulcrumCore, and the values of the admin's and agent's tokens.
    ids: CreatedObjects
    proxmox: ProxmoxStandIn
    #: Settings of the executor (environment variables) that override LAB_SETTINGS and all other settings of the lab.
    settings: dict[str, str] = field(default_factory=dict)
    #: The Python that runs the executor. Benchmarks also use a Python in which an earlier executor is installed.
    python: str = sys.executable
    #: The names of the settings that the executor gets; None: all. An executor refuses settings that it does not know.
    accepted_setting_names: frozenset[str] | None = None
    #: A command that is put before the executor's command line, such as `ip netns exec machine1`. It must start the
    #: executor by `exec`, so that the executor gets the signals. Empty: none.
    launcher: tuple[str, ...] = ()
    _simulator: SimulatorThread | None = None
    _executor: subprocess.Popen[bytes] | None = None
    _log: LogReader = field(default_factory=LogReader)

    @property
    def log_file(self) -> Path:
        """The file that receives the executor's standard output and standard error."""
        return self.folder / "executor.log"

    @property
    def data_dir(self) -> Path:
        """The folder in which the executor keeps its database and its artifacts."""
        return Path(self.settings.get("SMITH_DATA_DIR", self.folder / "data"))

    @property
    def core(self) -> SimulatorThread:
        """The FulcrumCore simulator. Raises RuntimeError if the lab uses another FulcrumCore."""
        if self._simulator is None:
            raise RuntimeError("this lab has no simulator")
        return self._simulator

    @property
    def executor(self) -> subprocess.Popen[bytes]:
        """The process of `smith run`. Raises RuntimeError if it was not started."""
        if self._executor is None:
            raise RuntimeError("the executor was not started")
        return self._executor

    def environment(self) -> dict[str, str]:
        """Return the environment variables for the executor and for `smith` commands.

        These are the lab's settings, and the environment variables of this process that are not executor settings.
        """
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(SETTING_PREFIXES)}
        settings = LAB_SETTINGS | self.proxmox.env() | {
            "FULCRUM_API_URL": self.fulcrum_base_url,
            "FULCRUM_API_TOKEN": self.ids.agent_token,
            "PROXMOX_TEMPLATES": VM_TEMPLATES,
            "PROXMOX_OS_TEMPLATES": CONTAINER_TEMPLATES,
            "PROXMOX_STORAGE": STORAGE,
            "SMITH_DATA_DIR": str(self.data_dir),
            "SMITH_RUN_DIR": str(self.folder / "run"),
        } | self.settings  # fmt: skip
        known_names = settings.keys() if self.accepted_setting_names is None else self.accepted_setting_names
        return inherited | {name: value for name, value in settings.items() if name in known_names}

    # --- the executor ---------------------------------------------------------------------------------------------

    def copy_for_another_executor(self, folder: Path, **settings: str) -> LabSystem:
        """Return a copy of this object for one more executor, which has its log and data in `folder`.

        The caller starts and stops this executor.
        """
        folder.mkdir(parents=True, exist_ok=True)
        return replace(self, folder=folder, settings=self.settings | settings, _executor=None, _log=LogReader())

    def start_executor(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `smith run` with these arguments, and return its process. Its log goes to `log_file`."""
        with self.log_file.open("ab") as log:
            self._executor = subprocess.Popen(
                [*self.launcher, self.python, "-m", "executor", "run", *arguments],
                env=self.environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self._executor

    def stop_executor(self, timeout_s: float = 120.0) -> int:
        """Send SIGTERM, wait until the executor ends, and return its exit code. Kill the executor after `timeout_s`."""
        process = self.executor
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def run_smith_json(self, *arguments: str, exit_codes: Collection[int] = (0,)) -> Any:
        """Run a `smith` command with --json; return its JSON. Raises RuntimeError as `run_smith_text` does."""
        return json.loads(self.run_smith_text(*arguments, "--json", exit_codes=exit_codes))

    def run_smith_text(self, *arguments: str, exit_codes: Collection[int] = (0,)) -> str:
        """Run a `smith` command; return its output. Raises RuntimeError if its exit code is not in `exit_codes`."""
        completed = run_smith_command(arguments, env=self.environment(), cwd=self.folder, timeout=COMMAND_TIMEOUT_S)
        if completed.returncode not in exit_codes:
            raise RuntimeError(
                f"smith {' '.join(arguments)} ended with exit code {completed.returncode}: {completed.stderr}"
            )
        return completed.stdout

    def log_events(self, event: str | None = None) -> list[Json]:
        """Return the entries of the executor's log. With `event`, return only the entries with this event."""
        return [entry for entry in self._log.read(self.log_file) if event is None or entry.get("event") == event]

    # --- FulcrumCore ----------------------------------------------------------------------------------------------

    def order_service(
        self, name: str, *, group_id: str | None = None, service_type_id: str | None = None, **properties: Any
    ) -> str:
        """Create a VM service, by default in a new group; return the service's id.

        A property that the caller sets to None is omitted from the request.
        """
        group_id = group_id or self.admin.create_group(self.ids.consumer_id, f"group-{name}")
        requested = {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"} | properties
        service = self.admin.create_service(
            group_id=group_id,
            service_type_id=service_type_id or self.ids.service_type_id,
            agent_id=self.ids.agent_id,
            name=name,
            properties={key: value for key, value in requested.items() if value is not None},
        )
        return str(service["id"])

    def order_container(self, name: str, **properties: Any) -> str:
        """Create a container service in a new group; return the service's id."""
        # `order_service` omits a property that is None. A container has an OS template instead of an image.
        requested = {"cores": 1, "memoryMb": 512, "diskGb": 4, "image": None, "osTemplate": "debian-12"} | properties
        return self.order_service(name, service_type_id=self.ids.container_type_id, **requested)

    def wait_for_jobs(self, service_id: str, timeout_s: float = 120.0) -> Json:
        """Wait until no job of the service is Pending or Processing; return the service."""
        return wait_for(
            lambda: self._service_if_jobs_ended(service_id), timeout_s, f"the jobs of service {service_id} to end"
        )

    def _service_if_jobs_ended(self, service_id: str) -> Json | None:
        """Return the service, or None if one of its jobs has not ended."""
        if any(job["status"] in ("Pending", "Processing") for job in self.admin.list_jobs(service_id)):
            return None
        return self.admin.get_service(service_id)

    def last_job(self, service_id: str) -> Json:
        """Return the service's newest job. Of jobs created in the same second, prefer one that has not ended."""
        jobs = self.admin.list_jobs(service_id)
        return max(jobs, key=lambda job: (job["createdAt"], job["status"] in ("Pending", "Processing")))

    def run_action(self, service_id: str, action: str, timeout_s: float = 120.0) -> Json:
        """Start an action on a service and wait until its job ends; return the job."""
        earlier_job_ids = {job["id"] for job in self.admin.list_jobs(service_id)}
        if action == "delete":
            self.admin.delete_service(service_id)
        else:
            self.admin.request_action(service_id, action)
        self.wait_for_jobs(service_id, timeout_s)
        return next(job for job in self.admin.list_jobs(service_id) if job["id"] not in earlier_job_ids)

    def update_service(self, service_id: str, timeout_s: float = 120.0, **properties: Any) -> Json:
        """Change properties of a service and wait until the update job ends; return the job."""
        earlier_job_ids = {job["id"] for job in self.admin.list_jobs(service_id)}
        self.admin.patch_service(service_id, properties)
        self.wait_for_jobs(service_id, timeout_s)
        return next(job for job in self.admin.list_jobs(service_id) if job["id"] not in earlier_job_ids)

    def reports(self, job_id: str) -> list[Json]:
        """Return the calls by which the executor reported to FulcrumCore that the job is completed or failed."""
        calls = self.core.history(method="POST")
        return [call for call in calls if call["path"].endswith((f"/{job_id}/complete", f"/{job_id}/fail"))]

    # --- Proxmox --------------------------------------------------------------------------------------------------

    def guests(self) -> list[Json]:
        """Return every VM and container that is not a template."""
        return [guest for guest in self.proxmox.guests() if not guest["template"]]

    def guests_of(self, service_id: str) -> list[Json]:
        """Return the VMs and containers whose description contains the marker `smith-uid=<service id>`."""
        return [
            guest
            for guest in self.guests()
            if service_id in marker_values_in(str(guest["config"].get("description", "")))
        ]


def run_smith_command(
    arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a `smith` command and wait for its end.

    Tests replace this function by a function that starts the command faster.
    """
    command = [sys.executable, "-m", "executor", *arguments]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, check=False, text=True, timeout=timeout)


@contextmanager
def run_lab_system(
    folder: Path,
    *,
    time_scale: float = 0.0,
    settings: Mapping[str, str] | None = None,
    core_host: str = simulator_server.DEFAULT_HOST,
    core_port: int = 0,
    proxmox_host: str = stand_in.HOST,
    proxmox_port: int = 0,
    fulcrum_base_url: str | None = None,
    limits_orders_to_settings: bool = False,
) -> Iterator[LabSystem]:
    """Run a simulator and a stand-in for the `with` block, and create the FulcrumCore objects that an executor needs.

    `time_scale` is the number of real seconds for each second of simulated Proxmox time; with 0, Proxmox tasks take no
    time. `core_host` and `proxmox_host` are the addresses on which simulator and stand-in listen. With
    `fulcrum_base_url`, the lab uses this FulcrumCore instead of a simulator; it must have no objects except the admin
    token `change-me`. With `limits_orders_to_settings`, customers can order only what the lab's settings allow.
    Otherwise, tests can also order what the executor must refuse. The caller starts the executor. This function stops
    the executor at the end of the block.
    """
    with ExitStack() as stack:
        simulator = None if fulcrum_base_url else stack.enter_context(running_simulator(host=core_host, port=core_port))
        fulcrum_base_url = simulator.url if simulator else str(fulcrum_base_url)
        stand_in_folder = folder / "proxmox"
        stand_in_folder.mkdir(parents=True, exist_ok=True)
        proxmox = stack.enter_context(
            running_stand_in(time_scale=time_scale, folder=stand_in_folder, host=proxmox_host, port=proxmox_port)
        )
        admin = stack.enter_context(AdminClient(fulcrum_base_url))
        ids = bootstrap(admin, limiting_settings=_limiting_settings() if limits_orders_to_settings else None)
        lab = LabSystem(
            folder=folder,
            fulcrum_base_url=fulcrum_base_url,
            admin=admin,
            ids=ids,
            proxmox=proxmox,
            settings=dict(settings or {}),
            _simulator=simulator,
        )
        stack.callback(_stop_running_executor, lab)
        yield lab


def _limiting_settings() -> Settings:
    """Return the lab's settings that limit which templates and storages the service types offer."""
    texts: Json = {
        "proxmox_templates": VM_TEMPLATES,
        "proxmox_os_templates": CONTAINER_TEMPLATES,
        "proxmox_storage": STORAGE,
    }
    return Settings(**texts)


def _stop_running_executor(lab: LabSystem) -> None:
    """Stop the executor if the caller started it and it still runs."""
    if lab._executor is not None and lab._executor.poll() is None:
        lab.stop_executor(timeout_s=30)


def outcome_of(job: Json) -> str:
    """Return the status of a job, followed by its error message if it has one."""
    status = str(job["status"])
    return f"{status}: {job['errorMessage']}" if job.get("errorMessage") else status


def wait_for(
    check: Callable[[], CheckedValue | None], timeout_s: float, description: str, interval_s: float = 0.1
) -> CheckedValue:
    """Call `check` every `interval_s` until its result is true; return the result.

    Raises TimeoutError after `timeout_s`. Its text contains `description`, which says what the caller waits for.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if result := check():
            return result
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {description}")
        time.sleep(interval_s)
