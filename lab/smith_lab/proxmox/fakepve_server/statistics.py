# SPDX-License-Identifier: AGPL-3.0-or-later
"""Sends the statistics of guests, nodes and storages in broadcasts at an interval, as Proxmox's daemon pvestatd does.

In the list `/cluster/resources` only the VMID of a guest, its node, lock, tags, pool and HA state are current. The
guest's name, its status, its usage and whether it is a template come from the broadcasts of pvestatd (pve-manager:
PVE/API2Tools.pm). Proxmox sends a broadcast every 10 s, and drops a broadcast after 5 minutes (pve-cluster: pmxcfs,
status.c).
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from aiohttp import web
from fakepve.server import ok

from smith_lab.proxmox.fakepve_server.access import AccessChecks

#: The members of a guest's row that do not come from a broadcast.
CURRENT_MEMBERS = ("id", "type", "node", "vmid", "pool", "lock", "tags", "hastate")
#: The members of a node's row that do not come from a broadcast.
CURRENT_NODE_MEMBERS = ("id", "type", "node", "ssl_fingerprint")
#: The members of a storage's row that come from a broadcast.
STORAGE_STATISTICS = ("disk", "maxdisk")
#: The interval is extended if making a broadcast (for thousands of guests) takes more than this share of it.
MAX_BROADCAST_SHARE = 0.05
ROOT = "root@pam"


class Statistics(AccessChecks):
    """Stores the statistics of all nodes at an interval, which simulates the broadcasts.

    Lists of guests, nodes and storages show the stored statistics.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        #: Seconds between two broadcasts. With 0, there is a broadcast about every 0.1 s.
        self.statistics_interval_s = 0.0
        #: The interval with which the stand-in was started. `do_clear_faults` in verbs_cluster.py restores it.
        self.default_statistics_interval_s = 0.0
        self.silent_nodes: set[str] = set()  #: nodes whose pvestatd sends nothing
        #: The newest statistics that were sent for each guest.
        self._sent_statistics_by_vmid: dict[int, dict[str, Any]] = {}
        self._reporting_nodes: set[str] = set()  #: the nodes whose statistics were sent and not dropped

    async def send_statistics_repeatedly(self) -> None:
        """Send a broadcast of every node at the interval, until the caller cancels this coroutine."""
        while True:
            began_at_s = time.monotonic()
            self.send_statistics()
            took_s = time.monotonic() - began_at_s
            await self._wait_for_interval(began_at_s, at_least_s=took_s / MAX_BROADCAST_SHARE)

    async def _wait_for_interval(self, began_at_s: float, at_least_s: float) -> None:
        """Wait until `at_least_s` and the interval have passed. Wait in short steps: a test may change the interval."""
        while time.monotonic() < began_at_s + max(self.statistics_interval_s, at_least_s):
            await asyncio.sleep(min(0.1, self.statistics_interval_s or 0.1))

    def send_statistics(self, *, without_vmid: int | None = None) -> None:
        """Send a broadcast of each node that is online and not in `silent_nodes`.

        The broadcast omits the guest with the VMID `without_vmid`, which a test has just added. As in Proxmox, lists
        show this guest without statistics until the next broadcast, or with the statistics of a removed guest that had
        the same VMID.
        """
        self._reporting_nodes = {name for name in self.nodes if self._is_reporting(name)}
        for row in self._guest_statistics():
            if row["node"] in self._reporting_nodes and row["vmid"] != without_vmid:
                self._sent_statistics_by_vmid[row["vmid"]] = {
                    name: value for name, value in row.items() if name not in CURRENT_MEMBERS
                }

    def _is_reporting(self, node: str) -> bool:
        return node not in self.silent_nodes and bool(self.nodes[node].get("online", True))

    def forget_statistics(self, node: str) -> None:
        """Drop the statistics that a node has sent, as Proxmox does 5 minutes after the last broadcast."""
        self._reporting_nodes.discard(node)
        for guest in [*self.vms, *self.cts]:
            if guest.node == node:
                self._sent_statistics_by_vmid.pop(guest.vmid, None)

    def _guest_statistics(self) -> list[dict[str, Any]]:
        vms = [
            {
                "node": vm.node,
                "vmid": vm.vmid,
                "name": vm.config.get("name") or vm.name,
                "status": vm.status,
                "template": 1 if vm.template else 0,
                **self._vm_usage(vm),
            }
            for vm in self.vms
        ]
        # The rows of all containers: root may read all of them, and the resource type `vm` includes containers.
        return vms + self.ct_resources(ROOT, "vm")

    async def _resources(self, request: web.Request) -> web.Response:
        rows = json.loads((await super()._resources(request)).text)["data"]
        converters = {"qemu": self._guest_row, "lxc": self._guest_row}
        converters |= {"node": self._node_row_with_ha_state, "storage": self._storage_row}
        return ok([converters[row["type"]](row) if row["type"] in converters else row for row in rows])

    async def _nodes(self, request: web.Request) -> web.Response:
        rows = json.loads((await super()._nodes(request)).text)["data"]
        return ok([self._node_row(row) for row in rows])

    def _node_row_with_ha_state(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row of a node in the list of resources, with the node's HA state if the HA manager has a state."""
        return {**self._node_row(row), **({"hastate": self._ha_state(row["node"])} if self._has_ha_state() else {})}

    def _guest_row(self, row: dict[str, Any]) -> dict[str, Any]:
        current = {name: row[name] for name in CURRENT_MEMBERS if name in row}
        return {**current, "status": "unknown", **self._sent_statistics_by_vmid.get(row["vmid"], {})}

    def _node_row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row of a node. Its status is unknown if the node is not offline but has sent no broadcast."""
        if row["node"] in self._reporting_nodes or row["status"] == "offline":
            return row
        current = {name: row[name] for name in CURRENT_NODE_MEMBERS if name in row}
        return {**current, "status": "unknown"}

    def _storage_row(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["node"] in self._reporting_nodes:
            return row
        return {name: value for name, value in row.items() if name not in STORAGE_STATISTICS} | {"status": "unknown"}

    def _has_ha_state(self) -> bool:
        """Return whether the HA manager has a state: a guest is an HA resource, or a node is in maintenance."""
        is_in_maintenance = any(node.get("maintenance") for node in self.nodes.values())
        return is_in_maintenance or any(guest.ha_managed for guest in [*self.vms, *self.cts])

    def _ha_state(self, node: str) -> str:
        if self.nodes[node].get("maintenance"):
            return "maintenance"
        return "online" if self.nodes[node].get("online", True) else "unknown"
