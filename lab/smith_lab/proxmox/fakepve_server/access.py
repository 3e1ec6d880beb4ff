# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checks permissions as Proxmox does, and removes from answers the rows that the caller has no permission to see.

fakepve is a library that simulates the Proxmox API. The classes of this package override methods of fakepve.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from aiohttp import web
from fakepve.qemu import drives_of, volume_ref
from fakepve.routing import die
from fakepve.server import USER, ok

from smith_lab.proxmox.fakepve_server.bridge_access import BridgeAccess

GIB = 1024**3
#: The capacity and use of a node, unless a test sets other values. The VMs of all tests fit into this capacity.
DEFAULT_NODE_STATS = {"cpu": 0.02, "maxcpu": 64, "mem": 8 * GIB, "maxmem": 4096 * GIB}
#: The members of a node's row that Proxmox sends only to a caller with Sys.Audit on this node.
NODE_STATISTICS = ("uptime", "cpu", "maxcpu", "mem", "maxmem", "disk", "maxdisk")
#: Separates alternative privileges: the caller needs only one of them. Proxmox's error texts use the same separator.
OR_SIGN = "|"
CLOUD_INIT_KEYS = ("ciuser", "cipassword", "sshkeys", "nameserver", "searchdomain", "citype", "ciupgrade", "cicustom")

#: Whether `require` checks the privilege VM.PowerMgmt. False during requests for which Proxmox does not check it.
_MUST_CHECK_POWER: ContextVar[bool] = ContextVar("must_check_power", default=True)


class AccessChecks(BridgeAccess):
    """Checks the privileges that Proxmox checks and fakepve does not check.

    Adds the capacity and use of nodes, and the HA state of nodes, to fakepve's answers.

    The base class BridgeAccess checks the access to network bridges.

    `v` contains the values of a request, as in fakepve: the parameters of the path, the query and the body.
    `request[USER]` is the caller: the user or token that sent the request. `die` makes the exception for an error
    answer. fakepve's methods `_qm_…` work on VMs.
    """

    async def _permissions(self, v: dict[str, Any], user: str) -> dict[str, dict[str, int]]:
        """Map the requested path to the caller's privileges on it. Without a path, do this for each path.

        For a requested path, fakepve also returns each path above it. A privilege on a path also applies to the paths
        below it, so this method joins the privileges on all these paths.
        """
        privileges_by_path: dict[str, dict[str, int]] = await super()._permissions(v, user)
        if v.get("path") is None:
            return privileges_by_path
        all_privileges: dict[str, int] = {}
        for privileges in privileges_by_path.values():
            all_privileges.update(dict.fromkeys(privileges, 1))
        return {v["path"]: all_privileges}

    def _check(self, user: str, check: list[Any], values: dict[str, Any], declared: Any = None) -> tuple[bool, str]:
        """Evaluate the permission rule `check`.

        fakepve has the rules of Proxmox VE 9. If version 8 is simulated, this method changes the rule.
        The rule ["perm", path, privileges, …] requires the privileges on the path. `declared` contains the parameters
        that the schema of the Proxmox API declares for the request.
        """
        if check[0] == "perm" and self.version.startswith("8."):
            check = [*check[:2], _privileges_of_version_8(check[2]), *check[3:]]
        is_allowed, refusal = super()._check(user, check, values, declared)
        return bool(is_allowed), str(refusal)

    def require(self, user: str, path: str, privilege: str) -> None:
        """Raise PveError (403) if the caller lacks the privilege."""
        if privilege != "VM.PowerMgmt" or _MUST_CHECK_POWER.get():
            super().require(user, path, privilege)

    async def _qm_rollback(self, v: dict[str, Any], user: str) -> str:
        """Roll a VM back. If the parameter `start` is set, the VM is then started.

        For this start, version 8 does not check VM.PowerMgmt (qemu-server: PVE/API2/Qemu.pm).
        """
        with _power_checks(are_enabled=not self.version.startswith("8.")):
            return str(await super()._qm_rollback(v, user))

    async def _lxc_rollback(self, user: str, v: dict[str, Any]) -> str:
        """Roll a container back. If the parameter `start` is set, the container is then started.

        For this start, no version checks VM.PowerMgmt (pve-container: API2/LXC/Snapshot.pm).
        """
        with _power_checks(are_enabled=False):
            return str(await super()._lxc_rollback(user, v))

    async def _cluster_status(self, request: web.Request) -> web.Response:
        self.require(request[USER], "/", "Sys.Audit")  # fakepve does not check a privilege for this request
        return await super()._cluster_status(request)

    async def _resources(self, request: web.Request) -> web.Response:
        """List the resources. As Proxmox does, omit storages on which the caller has no Datastore.Audit."""
        answer = json.loads((await super()._resources(request)).text)
        visible_rows = [
            row
            for row in answer["data"]
            if row["type"] != "storage" or self.allowed(request[USER], f"/storage/{row['storage']}", "Datastore.Audit")
        ]
        self._adapt_node_rows_to_caller([row for row in visible_rows if row["type"] == "node"], request[USER])
        for row in visible_rows:
            if row["type"] == "storage":
                row.update(self._bytes_of_storage(row["storage"]))
        return ok(visible_rows)

    def _bytes_of_storage(self, name: str) -> dict[str, int]:
        """Return the used and the total bytes of a storage. Values that a test has set replace fakepve's values."""
        storage = self.storages[name]
        if "avail" not in storage or "total" not in storage:
            total, used, _free = self._space(storage)
            return {"disk": used, "maxdisk": total}
        return {"disk": max(storage["total"] - storage["avail"], 0), "maxdisk": storage["total"]}

    async def _nodes(self, request: web.Request) -> web.Response:
        """List the nodes with their capacity and use. If the cluster has no quorum, only the first node is online."""
        answer = json.loads((await super()._nodes(request)).text)
        self._adapt_node_rows_to_caller(answer["data"], request[USER])
        return ok(answer["data"])

    def _adapt_node_rows_to_caller(self, rows: list[dict[str, Any]], user: str) -> None:
        """Add capacity and use to the rows of online nodes. Without Sys.Audit on the node, remove NODE_STATISTICS.

        If the cluster has no quorum, set all rows except the first to `offline`.
        """
        for row in rows:
            if row["status"] == "online":
                row.update({**DEFAULT_NODE_STATS, **self.nodes[row["node"]].get("stats", {})})
            if not self.allowed(user, f"/nodes/{row['node']}", "Sys.Audit"):
                for name in NODE_STATISTICS:
                    row.pop(name, None)
        if not self.quorate:
            for row in rows[1:]:
                row["status"] = "offline"

    async def _ha_manager_status(self, v: dict[str, Any], user: str) -> dict[str, Any]:
        """Return the HA state as nested objects, as Proxmox does. fakepve's answer has no nested objects."""
        self.require(user, "/", "Sys.Audit")
        state_by_node = {
            name: "maintenance" if node.get("maintenance") else "online" for name, node in sorted(self.nodes.items())
        }
        return {
            "manager_status": {"node_status": state_by_node},
            "quorum": {"node": "pve1", "quorate": 1},
            "lrm_status": {},
        }

    def _config_priv(self, key: str) -> str:
        """Return the privilege that a change of this configuration key requires."""
        if key == "hookscript":
            return "VM.Config.Options"
        if key in CLOUD_INIT_KEYS or key.startswith("ipconfig"):
            return OR_SIGN.join(("VM.Config.Cloudinit", "VM.Config.Network"))
        return str(super()._config_priv(key))

    def allowed(self, user: str, path: str, privilege: str) -> bool:
        """Return whether a caller has a privilege on a path. If OR_SIGN joins several privileges, one is enough."""
        return any(super(AccessChecks, self).allowed(user, path, each) for each in privilege.split(OR_SIGN))

    def granted_paths(self, user: str) -> set[str]:
        """Return the paths on which fakepve's member `acl` grants privileges to the caller.

        If the caller is a token (`user!token_id`), the paths of the token's user are included.
        """
        owners = (user, user.partition("!")[0])
        return {path for owner in owners for path, _privileges in (self.acl or {}).get(owner, [])}

    def _qm_perm(self, user: str, vmid: int, pool: Any, *privileges: str) -> None:
        """Check the caller's privileges for a new VM. `pool` is the VM's pool or None.

        VM.Config.CDROM is not checked: Proxmox requires it only for changes of a VM that exists.
        """
        privileges_to_check = [privilege for privilege in privileges if privilege != "VM.Config.CDROM"]
        if privileges_to_check:
            super()._qm_perm(user, vmid, pool, *privileges_to_check)

    async def _qm_create(self, v: dict[str, Any], user: str) -> str:
        self._check_bridges(user, v)
        return str(await super()._qm_create(v, user))

    def _check_source_of_clone(self, user: str, config: dict[str, Any]) -> None:
        """Require the privileges that Proxmox requires for the values in the configuration of the clone's source."""
        for key, value in config.items():
            for path, privilege in _privileges_to_clone(key, str(value)):
                self.require(user, path, privilege)

    async def _qm_clone(self, v: dict[str, Any], user: str) -> str:
        """Clone a VM. As Proxmox does, refuse a clone to another node if a disk of the source is on local storage."""
        if v.get("target") and v["target"] not in self.nodes:
            raise die(f"no such cluster node '{v['target']}'")
        source = self.find(v["node"], v["vmid"])
        self._check_bridges(user, source.config)
        self._check_source_of_clone(user, source.config)
        local_volumes = [volume for _key, volume, _props in drives_of(source.config) if not self._is_shared(volume)]
        if local_volumes and v.get("target") not in (None, "", v["node"]):
            raise die(f"can't clone VM to node '{v['target']}' (VM uses local storage)")
        new_storage = v.get("storage")
        if new_storage and v.get("target") not in (None, "", v["node"]) and not self._is_storage_shared(new_storage):
            raise die(f"can't clone to non-shared storage '{new_storage}'")
        return str(await super()._qm_clone(v, user))

    def _is_shared(self, volume: str) -> bool:
        """Return whether all nodes can access the storage of this volume."""
        storage, _name = volume_ref(volume)
        return self._is_storage_shared(storage or "")

    def _is_storage_shared(self, name: str) -> bool:
        return bool(self.storages.get(name, {}).get("shared"))


def _privileges_to_clone(key: str, value: str) -> list[tuple[str, str]]:
    """Return the pairs of path and privilege that are needed to clone a VM with this value in its configuration.

    Raises PveError if the value names a device of the host without a resource mapping. Only root@pam may clone such a
    VM.
    """
    kind, options = key.rstrip("0123456789"), dict(part.partition("=")[::2] for part in value.split(","))
    if kind in ("hostpci", "usb") and options.get("mapping"):
        return [(f"/mapping/{'pci' if kind == 'hostpci' else 'usb'}/{options['mapping']}", "Mapping.Use")]
    if kind in ("hostpci", "usb") and value.partition(",")[0] != "spice":
        raise die(f"only root can set '{key}' config for {'non-mapped' if kind == 'hostpci' else 'real'} devices")
    if kind == "virtiofs":
        return [(f"/mapping/dir/{options.get('dirid') or value.partition(',')[0]}", "Mapping.Use")]
    if kind == "rng" and "/dev/hwrng" in value:
        return [("/mapping/hwrng", "Mapping.Use")]
    if key == "cpu" and (cpu := re.search(r"custom-([\w.-]+)", value)):
        return [(f"/mapping/cpu/{cpu[1]}", "Mapping.Use")]
    if kind in ("ide", "sata", "scsi") and value.partition(",")[0] == "cdrom":
        return [("/", "Sys.Console")]
    return [(f"/storage/{value}", "Datastore.AllocateSpace")] if key == "vmstatestorage" else []


@contextmanager
def _power_checks(*, are_enabled: bool) -> Iterator[None]:
    """During the block, check VM.PowerMgmt only if `are_enabled` is true."""
    token = _MUST_CHECK_POWER.set(are_enabled)
    try:
        yield
    finally:
        _MUST_CHECK_POWER.reset(token)


def _privileges_of_version_8(privileges: list[str]) -> list[str]:
    """Return the privileges that version 8 requires in place of these privileges of version 9.

    Version 8 has no privileges VM.GuestAgent.*, so they are omitted. If no privilege is left, version 8 requires
    VM.Monitor.
    """
    common_privileges = [privilege for privilege in privileges if not privilege.startswith("VM.GuestAgent.")]
    return privileges if common_privileges == privileges else common_privileges or ["VM.Monitor"]
