"""Orders services in the lab that `smith lab` runs, and waits for their jobs, as a customer does.

This lab is a FulcrumCore simulator and a Proxmox stand-in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from executor.errors import EXIT_FAILURE, EXIT_OK, SmithError
from smith_lab.fulcrum_setup import AdminCallFailed, AdminClient
from smith_lab.running_lab import RunningLab, find_lab, open_admin_client

#: The name of the service group. FulcrumCore requires that each service belongs to a group of a customer.
GROUP_NAME = "lab"
VM_PROPERTIES = {"cores": 1, "memoryMb": 1024, "diskGb": 10, "image": "debian-12"}
CONTAINER_PROPERTIES = {"cores": 1, "memoryMb": 512, "diskGb": 4, "osTemplate": "debian-12"}
OPEN_STATUSES = ("Pending", "Processing")
POLL_INTERVAL_S = 0.2
#: If no agent has claimed the job after this time, the command asks whether `smith run` is running.
HINT_DELAY_S = 5.0
#: How long to wait for the end of a job: longer than the job timeout of 300 s, after which the simulator fails the job.
WAIT_LIMIT_S = 330.0
Json = dict[str, Any]


class OrderFailed(SmithError):
    """The command fails: FulcrumCore refuses the request, the name is wrong, or the job does not end in time."""


class Customer:
    """Sends a customer's requests for services, and prints the outcome of their jobs.

    The user refers to a service by its name. The requests contain the token of an administrator of
    FulcrumCore, because the lab has no token of a customer.
    """

    def __init__(self, folder: Path, *, must_wait: bool = True) -> None:
        """Find the lab in this folder. Raises NoLab if no lab is running there."""
        self._lab: RunningLab = find_lab(folder)
        self._admin: AdminClient = open_admin_client(self._lab, folder)
        self._must_wait = must_wait

    def order(self, name: str, properties: Mapping[str, Any], *, is_container: bool = False) -> int:
        """Create the service `name` with these properties, and with defaults for the others; return the exit code."""
        if self._find_services(name):
            raise OrderFailed(f"there is a service {name} already: choose another name, or `smith lab delete {name}`")
        defaults = CONTAINER_PROPERTIES if is_container else VM_PROPERTIES
        # RunningLab's `service_type_id` is the type of VMs.
        service = self._call_fulcrum(
            lambda: self._admin.create_service(
                group_id=self._find_or_create_group(),
                service_type_id=self._lab.container_type_id if is_container else self._lab.service_type_id,
                agent_id=self._lab.agent_id,
                name=name,
                properties={**defaults, **properties},
            )
        )
        return self._print_new_job_and_wait(name, str(service["id"]))

    def run_action(self, name: str, action: str) -> int:
        """Start an action, such as start, stop or delete, for the service `name`; return the exit code."""
        service_id = self._service_id(name)
        if action == "delete":
            self._call_fulcrum(lambda: self._admin.delete_service(service_id))
        else:
            self._call_fulcrum(lambda: self._admin.request_action(service_id, action))
        return self._print_new_job_and_wait(name, service_id)

    def update(self, name: str, properties: Mapping[str, Any]) -> int:
        """Change these properties of the service `name`; return the exit code."""
        if not properties:
            raise OrderFailed("there is nothing to change: give --cores, --memory-mb or --disk-gb")
        service_id = self._service_id(name)
        self._call_fulcrum(lambda: self._admin.patch_service(service_id, properties))
        return self._print_new_job_and_wait(name, service_id)

    def list_services(self) -> list[Json]:
        """Return all services of the lab, sorted by name."""
        return self._admin.list_services()

    def _find_services(self, name: str) -> list[Json]:
        return [row for row in self._admin.list_services() if row["name"] == name and row["status"] != "Deleted"]

    def _service_id(self, name: str) -> str:
        """Return the id of the service with this name. Raises OrderFailed unless exactly one service has the name."""
        services = self._find_services(name)
        if len(services) == 1:
            return str(services[0]["id"])
        known_names = ", ".join(
            sorted({row["name"] for row in self._admin.list_services() if row["status"] != "Deleted"})
        )
        reason = "several services have the name" if services else "there is no service"
        raise OrderFailed(f"{reason} {name}; services: {known_names or 'none, `smith lab order NAME` creates one'}")

    def _find_or_create_group(self) -> str:
        """Return the id of the service group GROUP_NAME. If the group does not exist, create it.

        FulcrumCore calls a customer a consumer.
        """
        for group in self._admin.list_all("service-groups"):
            if group["name"] == GROUP_NAME:
                return str(group["id"])
        return self._admin.create_group(self._lab.consumer_id, GROUP_NAME)

    def _call_fulcrum(self, request: Callable[[], Any]) -> Any:
        """Make the request. Raises OrderFailed with FulcrumCore's answer."""
        try:
            return request()
        except AdminCallFailed as error:
            raise OrderFailed(f"FulcrumCore refuses the request: {error}") from error

    def _print_new_job_and_wait(self, name: str, service_id: str) -> int:
        """Print the id of the service's newest job. With `must_wait`, wait until it has ended. Return the exit code."""
        job = self._admin.list_jobs(service_id)[-1]
        print(f"{name}: FulcrumCore has created the job {job['id']} ({job['action']})", flush=True)
        return self._wait_for_job(name, service_id, str(job["id"])) if self._must_wait else EXIT_OK

    def _wait_for_job(self, name: str, service_id: str, job_id: str) -> int:
        """Wait until the job has ended, and print its outcome; return the exit code."""
        started_at_s, is_hint_due = time.monotonic(), True
        while time.monotonic() - started_at_s < WAIT_LIMIT_S:
            job = next(job for job in self._admin.list_jobs(service_id) if job["id"] == job_id)
            if job["status"] not in OPEN_STATUSES:
                return self._print_outcome(name, service_id, job)
            if is_hint_due and job["status"] == "Pending" and time.monotonic() - started_at_s > HINT_DELAY_S:
                is_hint_due = False
                print("no agent has claimed the job yet: is `smith run` running in another shell?", flush=True)
            time.sleep(POLL_INTERVAL_S)
        raise OrderFailed(
            f"the job {job_id} has not ended after {WAIT_LIMIT_S:.0f} s: `smith jobs list` lists the agent's jobs"
        )

    def _print_outcome(self, name: str, service_id: str, job: Json) -> int:
        if job["status"] != "Completed":
            print(f"{name}: the job failed: {job.get('errorMessage') or 'without a message'}")
            print(f"for the cause, run `smith jobs show {job['id'][:8]}`")
            return EXIT_FAILURE
        service = self._admin.get_service(service_id)
        # The value of `agentInstanceId` is `<agent id>/<VMID>`.
        vmid = str(service.get("agentInstanceId") or "").rpartition("/")[2]
        print(f"{name}: {service['status']}" + (f", VMID {vmid}" if vmid else ""))
        return EXIT_OK
