# SPDX-License-Identifier: AGPL-3.0-or-later
"""Applies disturbances. When a given number of requests have arrived, a guest is changed or a request fails."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web
from fakepve.server import API, ok

from smith_lab.proxmox.fakepve_server.faults import RequestFaults
from smith_lab.proxmox.fakepve_server.statistics import Statistics
from smith_lab.proxmox.fakepve_server.task_answers import TaskStatusAndLogs

#: How a request fails, by the kind of the disturbance: the status (0: the connection is closed without an answer), the
#: error message, and whether the request is processed before the failure.
FAILURE_BY_KIND: dict[str, tuple[int, str, bool]] = {
    "refused_login": (401, "Authentication failed!", False),
    "unreachable_node": (595, "No route to host", False),
    "lost_answer": (596, "Connection timed out", True),
    "cut_off_before": (0, "", False),
    "cut_off_after": (0, "", True),
}


class DisturbancesByRequestCount(RequestFaults, TaskStatusAndLogs, Statistics):
    """Applies the disturbances that tests set by `POST /disturb` at the control port, an HTTP port for tests.

    A disturbance has the members `kind`, `vmid` and `requests`. The member `requests` is a
    number, which each request reduces by one. When it becomes 0, the disturbance is applied before this last request is
    answered. A kind in FAILURE_BY_KIND makes the last request fail, and `vmid` is not used. Any other kind affects the
    guest with this VMID.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.disturbances: list[dict[str, Any]] = []
        self.hidden_vmids: set[int] = set()  #: VMIDs of guests that the list of resources must not contain

    async def _answer(self, request: web.Request, handler: Any, schema_entry: Any, path_node: str | None) -> Any:
        """Apply the disturbances that are due with this request, and then answer it.

        `handler`, `schema_entry` and `path_node` come from fakepve, the simulation of Proxmox, and are only passed on.
        """
        for disturbance in list(self.disturbances):
            disturbance["requests"] -= 1
            if not disturbance["requests"]:
                self.disturbances.remove(disturbance)
                self._apply_disturbance(disturbance["kind"], disturbance["vmid"], request)
        return await super()._answer(request, handler, schema_entry, path_node)

    async def _resources(self, request: web.Request) -> web.Response:
        rows = json.loads((await super()._resources(request)).text)["data"]
        return ok([row for row in rows if row.get("vmid") not in self.hidden_vmids])

    def _apply_disturbance(self, kind: str, vmid: int, request: web.Request) -> None:
        guest = self.vm(vmid) or self.ct(vmid)
        if kind in FAILURE_BY_KIND:
            status, text, is_processed = FAILURE_BY_KIND[kind]
            fault = {"method": request.method, "path": request.path.removeprefix(API), "times": 1, "delay_s": 0}
            # RequestFaults applies the first fault in the list that matches a request. So it applies this fault to this
            # request. `after` means that the request fails after it is processed.
            self.faults.insert(0, {**fault, "status": status, "text": text, "after": is_processed})
        elif kind == "hide":
            self.hidden_vmids.add(vmid)
        elif kind == "show":
            self.hidden_vmids.discard(vmid)
        elif kind == "forget_tasks":
            self.forget_tasks(vmid)  # removes the guest's Proxmox tasks and their logs
        elif guest is not None:
            self._apply_to_guest(kind, guest)

    def _apply_to_guest(self, kind: str, guest: Any) -> None:
        if kind == "move" and not guest.lock:
            guest.node = "pve1" if guest.node == "pve2" else "pve2"
        elif kind == "lock" and not guest.lock:
            self._qm_lock(guest, "backup")  # fakepve's method for VMs and containers
        elif kind == "unlock" and guest.lock == "backup":
            self._qm_lock(guest, None)
        elif kind == "lose_name":
            self.forget_statistics(guest.node)  # the list of resources takes guests' names from these statistics
