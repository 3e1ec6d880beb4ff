"""Requests the jobs of a chaos run: orders services, and requests actions of the existing ones."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from typing import Any

import requests
from faults.system import SystemUnderTest
from smith_lab.fulcrum_setup import AdminCallFailed

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


def make_room(system: SystemUnderTest) -> None:
    """Give the stand-in's storage more space than the VMs of any chaos run need, so that no create is refused."""
    system.lab.proxmox.control("storage", storage="local-lvm", avail=ROOM_BYTES, total=ROOM_BYTES)


@dataclass
class Load:
    """Orders services and requests actions, so that MAX_OPEN_SERVICES of them have an open job."""

    system: SystemUnderTest
    rng: random.Random
    wanted: int
    requested: int = 0
    _groups: list[str] = field(default_factory=list)

    def turn(self) -> None:
        """Request jobs up to the limit. A request that an injected fault breaks is repeated in the next turn."""
        with contextlib.suppress(AdminCallFailed, requests.RequestException):
            self._request_jobs()

    def _request_jobs(self) -> None:
        services, busy = self._services()
        existing = sum(service.status != "Deleted" for service in services)
        while self.requested < self.wanted and len(busy) < MAX_OPEN_SERVICES:
            idle = [service for service in services if service.id not in busy and service.status in ACTIONS]
            if idle and (existing >= MAX_SERVICES or self.rng.random() < 0.7):
                service = self.rng.choice(idle)
                self._act(service)
                busy.add(service.id)
            elif existing < MAX_SERVICES:
                busy.add(self._order())
                existing += 1
            else:
                return

    def _services(self) -> tuple[list[Any], set[str]]:
        store = self.system.lab.core.server.store
        with store.lock:
            busy = {job.service_id for job in store.jobs.values() if job.status in OPEN}
            return list(store.services.values()), busy

    def _order(self) -> str:
        lab = self.system.lab
        if len(self._groups) < MAX_OPEN_SERVICES:
            self._groups.append(lab.admin.create_group(lab.ids.consumer_id, f"tenant-{len(self._groups)}"))
        group_id, disk_gib = self.rng.choice(self._groups), self.rng.choice((8, 10, 12))
        service_id = self.system.order_service(f"chaos-{self.requested}", group_id=group_id, diskGb=disk_gib)
        self.requested += 1
        return service_id

    def _act(self, service: Any) -> None:
        choice = ACTIONS[service.status]
        action = self.rng.choices(list(choice), weights=list(choice.values()))[0]
        admin = self.system.lab.admin
        if action == "delete":
            admin.delete_service(service.id)
        elif action == "update":
            # Tags can be changed in every status; cores and memory only while stopped.
            admin.patch_service(service.id, {"tags": [f"t{self.rng.randrange(5)}"]})
        else:
            admin.start_action(service.id, action)
        self.requested += 1
