"""Requests the jobs of a chaos run: orders services, and requests actions for the existing ones."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import requests
from faults.system import SystemUnderTest
from smith_lab.fulcrum_setup import AdminCallFailed, AdminClient

#: How many services may have an open job at the same time.
MAX_OPEN_SERVICES = 20
#: No service is ordered while this many exist. The stand-in has room for more (`make_room`), but each VM costs time.
MAX_SERVICES = 120
ROOM_BYTES = 1 << 50
OPEN = ("Pending", "Processing")
#: The actions of a service by its status, each with its weight.
ACTIONS = {
    "New": {"create": 1},
    "CreateFailed": {"create": 3, "delete": 1},
    "Stopped": {"start": 4, "update": 2, "snapshot": 1, "delete": 2},
    "Started": {"stop": 4, "restart": 2, "update": 1, "delete": 1},
    "Lost": {"delete": 1},
}


@dataclass(frozen=True)
class ServiceState:
    """A service at FulcrumCore."""

    id: str
    status: str


#: All services of FulcrumCore, and the ids of those that have an open job.
Services = tuple[list[ServiceState], set[str]]


def services_in_simulator(system: SystemUnderTest) -> Callable[[], Services]:
    """Return a function that reads the services from the simulator's memory, which costs less than requests."""
    store = system.lab.core.server.store

    def read() -> Services:
        with store.lock:
            ids_with_open_job = {job.service_id for job in store.jobs.values() if job.status in OPEN}
            return [ServiceState(service.id, service.status) for service in store.services.values()], ids_with_open_job

    return read


def services_over_api(admin: AdminClient) -> Callable[[], Services]:
    """Return a function that reads the services with requests to the API, which any FulcrumCore answers."""

    def read() -> Services:
        # The jobs are read first: a service whose job ends meanwhile is only seen later as one without an open job.
        ids_with_open_job = {job["serviceId"] for status in OPEN for job in admin.list_all("jobs", status=status)}
        return [ServiceState(item["id"], item["status"]) for item in admin.list_services()], ids_with_open_job

    return read


def make_room(system: SystemUnderTest) -> None:
    """Give the stand-in's storage more space than the VMs of any chaos run need, so that no create is refused."""
    system.lab.proxmox.control("storage", storage="local-lvm", avail=ROOM_BYTES, total=ROOM_BYTES)


@dataclass
class Load:
    """Orders services and requests actions, so that `max_open` services have an open job."""

    system: SystemUnderTest
    rng: random.Random
    wanted: int
    read_services: Callable[[], Services]
    actions: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: ACTIONS)
    properties: Mapping[str, Any] = field(default_factory=dict)  #: of each service, in addition to the default ones
    max_services: int = MAX_SERVICES
    max_open: int = MAX_OPEN_SERVICES
    requested: int = 0
    _groups: list[str] = field(default_factory=list)

    def turn(self) -> None:
        """Request jobs up to the limit. A request that an injected fault breaks is repeated in the next turn."""
        with contextlib.suppress(AdminCallFailed, requests.RequestException):
            self._request_jobs()

    def _request_jobs(self) -> None:
        services, ids_with_open_job = self.read_services()
        existing = sum(service.status != "Deleted" for service in services)
        while self.requested < self.wanted and len(ids_with_open_job) < self.max_open:
            idle = [
                service
                for service in services
                if service.id not in ids_with_open_job and service.status in self.actions
            ]
            if idle and (existing >= self.max_services or self.rng.random() < 0.7):
                service = self.rng.choice(idle)
                self._request_action(service)
                ids_with_open_job.add(service.id)
            elif existing < self.max_services:
                ids_with_open_job.add(self._order())
                existing += 1
            else:
                return

    def _order(self) -> str:
        lab = self.system.lab
        if len(self._groups) < MAX_OPEN_SERVICES:
            self._groups.append(lab.admin.create_group(lab.ids.consumer_id, f"tenant-{len(self._groups)}"))
        group_id, disk_gib = self.rng.choice(self._groups), self.rng.choice((8, 10, 12))
        name = f"chaos-{self.requested}"
        service_id = self.system.order_service(name, group_id=group_id, diskGb=disk_gib, **self.properties)
        self.requested += 1
        return service_id

    def _request_action(self, service: ServiceState) -> None:
        weights = self.actions[service.status]
        action = self.rng.choices(list(weights), weights=list(weights.values()))[0]
        admin = self.system.lab.admin
        if action == "delete":
            admin.delete_service(service.id)
        elif action == "update":
            # Tags can be changed in every status; cores and memory only while stopped.
            admin.patch_service(service.id, {"tags": [f"t{self.rng.randrange(5)}"]})
        else:
            admin.request_action(service.id, action)
        self.requested += 1
