# SPDX-License-Identifier: AGPL-3.0-or-later
"""Handles the requests resize, migrate, move_disk and unlink to fakepve, a simulation of Proxmox.

This package extends fakepve. Without this module, fakepve answers these requests, but changes nothing.
"""

from __future__ import annotations

import re
from typing import Any

from fakepve.lxc import SIZE_UNITS, format_size, parse_size
from fakepve.model import FakeVm, PveError, TaskError
from fakepve.qemu import drives_of, is_cdrom, join_drive, split_drive, volume_ref
from fakepve.routing import die, param_error

from smith_lab.proxmox.fakepve_server.configuration import ConfigurationChanges
from smith_lab.proxmox.fakepve_server.tasks import TimedTasks


class DiskAndNodeOperations(ConfigurationChanges, TimedTasks):
    """Handles requests that change disks or migrate VMs.

    `v` contains the values of a request: the parameters of the path, the query and the body. `die` and `param_error`
    make the exception for an error answer. fakepve's methods `_qm_…` work on VMs and their volumes, and `need_quorum`
    raises PveError if the cluster has no quorum. If a VM does not exist, `find` raises PveError, and `vm` returns None.
    `task` starts a Proxmox task. Its argument `vm` is the VM that the Proxmox task changes: two Proxmox tasks never
    change one VM at once.
    """

    def _routes_disk_and_node_operations(self) -> list[tuple[str, str, Any]]:
        """Return the routes of requests. fakepve calls every method whose name starts with `_routes_`."""
        vm_path = "/nodes/{node}/qemu/{vmid}"
        return [
            ("PUT", vm_path + "/resize", self._resize),
            ("POST", vm_path + "/migrate", self._migrate),
            ("POST", vm_path + "/move_disk", self._move_disk),
            ("PUT", vm_path + "/unlink", self._unlink),
            # A base class, AccessChecks, handles the request for the status of the HA manager.
            ("GET", "/cluster/ha/status/manager_status", self._ha_manager_status),
        ]

    async def _resize(self, v: dict[str, Any], user: str) -> str:
        """Enlarge a disk. Without quorum, the request fails. With any other error, only its Proxmox task fails."""
        disk, size = v["disk"], str(v["size"])
        self.need_quorum()

        async def resize_disk() -> None:
            try:
                vm = self.find(v["node"], v["vmid"])
            except PveError as exc:
                raise TaskError(exc.message) from exc
            self._check_lock_in_task(vm)
            if disk not in vm.config:
                raise TaskError(f"disk '{disk}' does not exist")
            volume, props = split_drive(vm.config[disk])
            if is_cdrom(volume, props):
                raise TaskError("you can't resize a cdrom")
            old_bytes = parse_size(props.get("size", "0")) or 0
            new_bytes = _parse_bytes(size.removeprefix("+"))
            if size.startswith("+"):  # the request contains the increase, not the new size
                new_bytes += old_bytes
            if new_bytes < old_bytes:
                raise TaskError("shrinking disks is not supported")
            self._enlarge_volume(volume, new_bytes - old_bytes)
            vm.config[disk] = join_drive(volume, dict(props, size=format_size(new_bytes)))

        return await self.task(v["node"], "resize", v["vmid"], user, resize_disk, vm=self.vm(int(v["vmid"])))

    @staticmethod
    def _check_lock_in_task(vm: FakeVm) -> None:
        """Make the running Proxmox task fail if the VM is locked."""
        if vm.lock:
            raise TaskError(f"VM is locked ({vm.lock})")

    def _enlarge_volume(self, volume: str, added_bytes: int) -> None:
        """Enlarge the volume by `added_bytes`, and reduce the free space of its storage by the same number.

        Raises TaskError if the storage has less free space than `added_bytes`.
        """
        storage_name, volume_name = volume_ref(volume)
        storage = self.storages.get(storage_name or "", {})
        if added_bytes > storage.get("avail", float("inf")):
            raise TaskError(f"unable to write to storage '{storage_name}': No space left on device")
        if "avail" in storage:
            storage["avail"] -= added_bytes
        if volume_name in storage.get("volumes", {}):
            storage["volumes"][volume_name]["size"] += added_bytes

    async def _migrate(self, v: dict[str, Any], user: str) -> str:
        vm = self.find(v["node"], v["vmid"])
        target = v["target"]
        self.need_quorum()
        self._check_lock(vm)
        if target == vm.node:
            raise param_error(target="target is local node.")
        if target not in self.nodes:
            raise die(f"no such cluster node '{target}'")
        if vm.status == "running" and not v.get("online"):
            raise die("can't migrate running VM without --online")
        local_volumes = [
            volume for _key, volume, _props in drives_of(vm.config, skip_cdrom=True) if not self._is_shared(volume)
        ]
        if vm.status == "running" and local_volumes and not v.get("with-local-disks"):
            raise die("can't live migrate attached local disks without with-local-disks option")
        return str(await self.migrate(vm.vmid, target, user=user))

    async def _move_disk(self, v: dict[str, Any], user: str) -> str:
        vm = self.find(v["node"], v["vmid"])
        disk, storage = v["disk"], v.get("storage")
        self._check_lock(vm)
        if disk not in vm.config:
            raise die(f"disk '{disk}' does not exist")
        if not storage:
            raise die("you must specify a storage")
        volume, props = split_drive(vm.config[disk])
        if is_cdrom(volume, props):
            raise die("you can't move a cdrom")
        target_format = v.get("format")
        if volume_ref(volume)[0] == storage and target_format in (None, (self._qm_volume(volume) or {}).get("format")):
            raise die("you can't move to the same storage with same format")
        if v.get("delete") and any(volume in str(snapshot.get(disk)) for snapshot in vm.snapshots.values()):
            raise die("you can't move a disk with snapshots and delete the source")
        self._qm_image_store(storage, user)  # raises unless the user may allocate VM disks on this storage

        async def move_disk() -> None:
            old_volume, props = split_drive(vm.config[disk])
            size_bytes = parse_size(props.get("size", "0")) or 0
            new_volume, _format = self._qm_alloc(storage, vm.vmid, v.get("format"), size_bytes)
            vm.config[disk] = join_drive(new_volume, props)
            if v.get("delete"):
                self._qm_free(old_volume)
            else:
                vm.config[self._next_unused_key(vm)] = old_volume

        return await self.task(vm.node, "qmmove", vm.vmid, user, move_disk, vm=vm)

    async def _unlink(self, v: dict[str, Any], user: str) -> None:
        vm = self.find(v["node"], v["vmid"])
        await self._apply_config(vm, user, {"delete": v["idlist"]})


def _parse_bytes(text: str) -> int:
    """Return the number of bytes in a size such as `10G`."""
    number, unit = re.fullmatch(r"([\d.]+)([KMGT]?)", text).groups()  # type: ignore[union-attr]
    return int(float(number) * SIZE_UNITS.get(unit, 1))
