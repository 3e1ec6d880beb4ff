# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checks permissions as Proxmox does, and removes from answers what the caller has no permission for.

fakepve is a library that simulates the Proxmox API. The classes of this package override its methods.
"""

from __future__ import annotations

import json
import re
from typing import Any

from aiohttp import web
from fakepve.qemu import drives_of, volume_ref
from fakepve.routing import die
from fakepve.server import USER, FakePve, ok

GIB = 1024**3
#: Capacity and use of a node, unless a test changed them by the control port. The capacity is enough for every test.
NODE_STATS = {"cpu": 0.02, "maxcpu": 64, "mem": 8 * GIB, "maxmem": 4096 * GIB}
CLOUD_INIT_KEYS = ("ciuser", "cipassword", "sshkeys", "nameserver", "searchdomain", "citype", "ciupgrade", "cicustom")


class AccessChecks(FakePve):
    """Checks privileges where Proxmox checks them and fakepve does not.

    `v` holds the values of a request, as in fakepve: the parameters of the path, the query and the body.
    """

    async def _permissions(self, v: dict[str, Any], user: str) -> dict[str, dict[str, int]]:
        """Return the permissions on the requested path only, as Proxmox does.

        fakepve returns the permissions on every path for which the user was granted any.
        """
        granted: dict[str, dict[str, int]] = await super()._permissions(v, user)
        if v.get("path") is None:
            return granted
        merged = {privilege: 1 for privileges in granted.values() for privilege in privileges}
        return {v["path"]: merged}

    async def _cluster_status(self, request: web.Request) -> web.Response:
        self.require(request[USER], "/", "Sys.Audit")  # fakepve does not check a privilege for this request
        return await super()._cluster_status(request)

    async def _resources(self, request: web.Request) -> web.Response:
        """List only storages on which the caller has Datastore.Audit, as Proxmox does. fakepve lists all storages."""
        answer = json.loads((await super()._resources(request)).text)
        visible_rows = [
            row
            for row in answer["data"]
            if row["type"] != "storage" or self.allowed(request[USER], f"/storage/{row['storage']}", "Datastore.Audit")
        ]
        return ok(visible_rows)

    async def _nodes(self, request: web.Request) -> web.Response:
        """List the nodes with their capacity and use. If the cluster has no quorum, only the first node is online."""
        answer = json.loads((await super()._nodes(request)).text)
        for node in answer["data"]:
            if node["status"] == "online":
                node.update({**NODE_STATS, **self.nodes[node["node"]].get("stats", {})})
        for node in answer["data"][1:]:
            node["status"] = node["status"] if self.quorate else "offline"
        return ok(answer["data"])

    async def _ha_manager_status(self, v: dict[str, Any], user: str) -> dict[str, Any]:
        """Return the HA state as nested objects, as Proxmox does. fakepve's generic answer has no nested objects."""
        self.require(user, "/", "Sys.Audit")
        states = {
            name: "maintenance" if node.get("maintenance") else "online" for name, node in sorted(self.nodes.items())
        }
        return {"manager_status": {"node_status": states}, "quorum": {"node": "pve1", "quorate": 1}, "lrm_status": {}}

    def _config_priv(self, key: str) -> str:
        """Return the privilege that a change of this configuration key requires."""
        if key in CLOUD_INIT_KEYS or key.startswith("ipconfig"):
            return "VM.Config.Cloudinit"
        return str(super()._config_priv(key))

    def _check_bridges(self, user: str, values: dict[str, Any]) -> None:
        """Require the privilege SDN.Use on each bridge that a NIC in these configuration values uses."""
        for key, value in values.items():
            if re.fullmatch(r"net\d+", key) and (bridge := re.search(r"bridge=([^,]+)", str(value))):
                self.require(user, f"/sdn/zones/localnetwork/{bridge.group(1)}", "SDN.Use")

    async def _qm_clone(self, v: dict[str, Any], user: str) -> str:
        """Clone a VM. Refuse a clone to another node if a disk of the source is on local storage, as Proxmox does."""
        source = self.find(v["node"], v["vmid"])
        self._check_bridges(user, source.config)
        local_volumes = [volume for _key, volume, _props in drives_of(source.config) if not self._is_shared(volume)]
        if local_volumes and v.get("target") not in (None, "", v["node"]):
            raise die(f"can't clone VM to node '{v['target']}' (VM uses local storage)")
        return str(await super()._qm_clone(v, user))

    def _is_shared(self, volume: str) -> bool:
        """Return whether all nodes can access the storage of this volume."""
        return bool(self.storages.get(volume_ref(volume)[0] or "", {}).get("shared"))
