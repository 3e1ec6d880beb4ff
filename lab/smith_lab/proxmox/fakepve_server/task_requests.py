# SPDX-License-Identifier: AGPL-3.0-or-later
"""Simulates checks that Proxmox makes inside a Proxmox task: the request succeeds, and the Proxmox task fails.

fakepve, the library that simulates the Proxmox API, makes some of the checks when the request arrives, so that the
request fails. It lacks the rest of the checks. In Proxmox, the checks are in the package qemu-server: in
PVE/API2/Qemu.pm, PVE/QemuServer.pm and PVE/VZDump/QemuServer.pm.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web
from fakepve.model import FakeVm, PveError, TaskError
from fakepve.qemu import DRIVE_KEY, drives_of, volume_ref
from fakepve.server import USER, ok

from smith_lab.proxmox.fakepve_server.access import DEFAULT_NODE_STATS
from smith_lab.proxmox.fakepve_server.tasks import TimedTasks

#: The power actions whose Proxmox tasks start before Proxmox reads the VM, with the types of these Proxmox tasks.
TASK_TYPE_BY_ACTION = {"start": "qmstart", "stop": "qmstop", "shutdown": "qmshutdown"}


class ChecksInProxmoxTasks(TimedTasks):
    """Makes the checks that Proxmox makes inside a Proxmox task, not when the request arrives.

    `ttype` is the type of a Proxmox task, such as `qmstart`. `tid` is the id of the object on which it works, mostly a
    VMID. `body` is the function that does its work. `p` contains the parameters of a request. `request[USER]` is the
    user or token that sent the request.
    """

    async def _status_action(self, request: web.Request) -> web.Response:
        """Handle a power action. If the VM is missing or on another node, the Proxmox task fails."""
        action, node, vmid = (request.match_info[name] for name in ("action", "node", "vmid"))
        try:
            return await super()._status_action(request)
        except PveError as exc:
            # If the VM is missing or on another node, fakepve's message is `Configuration file '…' does not exist`.
            if action not in TASK_TYPE_BY_ACTION or not exc.message.startswith("Configuration file"):
                raise
            text = exc.message
        self.require(request[USER], f"/vms/{vmid}", "VM.PowerMgmt")
        return ok(await self._start_failing_task(node, TASK_TYPE_BY_ACTION[action], vmid, request[USER], text))

    async def _start_failing_task(self, node: str, ttype: str, vmid: Any, user: str, text: str) -> str:
        async def fail() -> None:
            raise TaskError(text)

        return await self.task(node, ttype, vmid, user, fail)

    async def _do_shutdown(self, vm: FakeVm, user: str, p: dict[str, Any]) -> str:
        """Shut a VM down. For a stopped VM that HA does not manage, the Proxmox task only checks the VM's lock."""
        if vm.status == "running" or vm.ha_managed:
            return str(await super()._do_shutdown(vm, user, p))

        async def require_unlocked() -> None:
            if vm.lock:
                raise TaskError(f"VM is locked ({vm.lock})")

        return await self.task(vm.node, "qmshutdown", vm.vmid, user, require_unlocked, vm=vm)

    async def task(  # noqa: PLR0917 - the signature is fakepve's
        self, node: str, ttype: str, tid: Any, user: str, body: Any, vm: Any = None, **kwargs: Any
    ) -> str:
        """Start a Proxmox task. A Proxmox task that starts, backs up or removes a VM first checks the VM."""

        async def checked_body() -> Any:
            if ttype == "qmstart" and vm is not None:
                self._check_vcpus(vm)
            if ttype == "vzdump" and isinstance(vm, FakeVm) and vm.status == "stopped":
                self._check_start_for_backup(vm)
            if ttype == "qmdestroy" and vm is not None and vm.template:
                self._check_linked_clones(vm)
            if ttype == "qmdestroy" and vm is not None:
                _remove_drives_from_snapshots(vm)
                if vm.lock == "suspended":
                    self._qm_lock(vm, None)  # fakepve would refuse to destroy the VM; Proxmox destroys a hibernated VM
            return await body()

        return str(await super().task(node, ttype, tid, user, checked_body, vm=vm, **kwargs))

    def _check_vcpus(self, vm: FakeVm) -> None:
        """Raise TaskError if the VM has more CPUs than its node (qemu-server: PVE/QemuServer.pm, config_to_command)."""
        max_vcpus = int(self.nodes[vm.node].get("stats", {}).get("maxcpu") or DEFAULT_NODE_STATS["maxcpu"])
        if int(vm.config.get("sockets") or 1) * int(vm.config.get("cores") or 1) > max_vcpus:
            raise TaskError(f"MAX {max_vcpus} vcpus allowed per VM on this node")

    def _check_start_for_backup(self, vm: FakeVm) -> None:
        """Raise TaskError if a stopped VM cannot be started for its backup (qemu-server: PVE/VZDump/QemuServer.pm)."""
        try:
            self._check_vcpus(vm)
        except TaskError as exc:
            self._log_of("vzdump", str(vm.vmid)).append(f"ERROR: Backup of VM {vm.vmid} failed - {exc}")
            raise TaskError("job errors") from exc

    def _check_linked_clones(self, template: FakeVm) -> None:
        """Raise TaskError if a volume of the template has linked clones. Proxmox does not check volumes on LVM-thin."""
        for _key, volume, _props in drives_of(template.config, skip_cdrom=True):
            storage_name, name = volume_ref(volume)
            storage = self.storages.get(storage_name or "", {})
            base_volumes = [volume.get("base") for volume in storage.get("volumes", {}).values()]
            if storage.get("type") != "lvmthin" and f"{template.vmid}/{name.split('/')[-1]}" in base_volumes:
                raise TaskError(f"base volume '{volume}' is still in use by linked cloned")

    def _qm_alloc(
        self, sid: str, vmid: int, fmt: str | None, size: int, linked_from: str | None = None
    ) -> tuple[str, str]:
        """Allocate a volume on the storage `sid`; return the volume's id and format.

        For a linked clone, `linked_from` is the base volume, such as `9000/base-9000-disk-0`. It is stored in the new
        volume's member `base`.
        """
        volume, fmt = super()._qm_alloc(sid, vmid, fmt, size, linked_from)
        if linked_from:
            self.storages[sid]["volumes"][volume_ref(volume)[1]]["base"] = linked_from
        return volume, str(fmt)


def _remove_drives_from_snapshots(vm: FakeVm) -> None:
    """Remove the drives from a VM's snapshots before the VM is removed.

    Otherwise fakepve deletes the volumes of these drives. Proxmox keeps a volume that only a snapshot names.
    """
    for name, snapshot in vm.snapshots.items():
        vm.snapshots[name] = {key: value for key, value in snapshot.items() if not DRIVE_KEY.match(key)}
