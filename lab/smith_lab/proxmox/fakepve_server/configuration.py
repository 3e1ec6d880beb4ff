# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reads and changes the configuration of a VM as Proxmox does."""

from __future__ import annotations

import json
import re
from typing import Any

from aiohttp import web
from fakepve.model import FakeVm, PveError, TaskError
from fakepve.qemu import DRIVE_KEY, is_cdrom, split_drive, with_mac
from fakepve.routing import die, split_list
from fakepve.server import ok

from smith_lab.proxmox.fakepve_server.access import AccessChecks

#: The text that Proxmox sends instead of a cloud-init password.
HIDDEN_PASSWORD = "**********"


class ConfigurationChanges(AccessChecks):
    """Handles pending values, new and detached disks, and tags as Proxmox does.

    A pending value is a changed value that takes effect when the VM is started again. The pending value None removes
    the key. fakepve is the simulation of Proxmox that this package extends. Its methods `_qm_…` work on VMs and their
    volumes. Their argument `default` is the storage for a new disk whose value names no storage. `die` makes the
    exception for an answer with status 500.
    """

    async def _config_get(self, request: web.Request) -> web.Response:
        """Return the configuration with the pending values, or without them if the query has `current=1`."""
        vm = self._vm(request, "VM.Audit")  # checks this privilege and finds the VM
        config = dict(vm.config)
        if request.query.get("current") not in ("1", "true"):
            future_config = {**config, **vm.pending}
            config = {key: value for key, value in future_config.items() if value is not None}  # None removes a key
        return ok(_render_config(config, vm.digest()))

    async def _pending(self, request: web.Request) -> web.Response:
        """Return the pending changes, with stars instead of the cloud-init password."""
        answer = json.loads((await super()._pending(request)).text)
        for item in answer["data"]:
            for member in ("value", "pending"):
                if item["key"] == "cipassword" and member in item:
                    item[member] = HIDDEN_PASSWORD
        return ok(answer["data"])

    async def _apply_config(self, vm: FakeVm, user: str, changes: dict[str, Any]) -> None:
        """Change the configuration: add new disks, keep detached disks as `unusedN`, apply hot-pluggable values."""
        updates = dict(changes)
        if updates.get("digest"):
            await self._wait_for_config_lock(vm)
        self._check_bridges(user, updates)
        self._check_lock(vm)  # raises PveError if an operation such as `backup` has locked the VM (`vm.lock`)
        changed_keys = {*updates, *split_list(updates.get("delete"))}
        # As in Proxmox, the user also needs the privileges for the old bridge of a changed or removed network device.
        self._check_bridges(user, {key: value for key, value in vm.config.items() if key in changed_keys})
        for key in list(updates):
            if DRIVE_KEY.match(key):
                # fakepve ignores `pool`. With the `default` None, a new disk whose value names no storage is refused.
                self._qm_check_drive(user, vm.vmid, pool=None, key=key, value=updates[key], default=None)
                updates[key], _created = self._qm_new_drive(vm.vmid, key, updates[key], default=None)
            elif re.fullmatch(r"net\d+", key):
                updates[key] = with_mac(updates[key])
        if "tags" in updates:
            tags = {tag.lower() for tag in split_list(updates["tags"])}
            updates["tags"] = ";".join(sorted(tags))
        removed_values = {key: vm.config[key] for key in split_list(updates.get("delete")) if key in vm.config}
        try:
            await super()._apply_config(vm, user, updates)
        except PveError as exc:  # for an error of the boot order, fakepve's status is 400, and Proxmox's is 500
            if "bootorder" not in str(exc.errors):
                raise
            raise die(exc.errors["boot"]) from exc
        self._detach_disks(vm, removed_values)
        self._apply_hotplug(vm)

    async def _wait_for_config_lock(self, vm: FakeVm) -> None:
        """Wait until no other operation has the lock of the VM's configuration file.

        This lock is not `vm.lock`, which names an operation that has locked the VM, such as `backup`.

        Proxmox compares the digest in the request with the configuration while it has the lock (qemu-server:
        `update_vm_api` in PVE/API2/Qemu.pm). fakepve compares them without the lock, after this method. No other
        coroutine runs between this method and the comparison, so the result is the same as in Proxmox. The
        second argument of `acquire` and `release` names the holder of the lock.
        """
        try:
            await self.acquire(vm, "digest")
        except TaskError as exc:
            raise die(str(exc)) from exc
        self.release(vm, "digest")

    def _detach_disks(self, vm: FakeVm, removed_values: dict[str, str]) -> None:
        """Free the volumes of removed cloud-init drives and `unusedN` disks. Keep other removed disks as `unusedN`."""
        for key, value in removed_values.items():
            volume, props = split_drive(value)
            if key.startswith("unused"):
                vm.config.pop(key, None)
                self._qm_free(volume)
            elif DRIVE_KEY.match(key):
                vm.config.pop(key, None)
                vm.pending.pop(key, None)
                if is_cdrom(volume, props):
                    self._qm_free(volume)  # frees the volume of a cloud-init drive; does nothing for an ISO image
                else:
                    vm.config[self._next_unused_key(vm)] = volume

    @staticmethod
    def _next_unused_key(vm: FakeVm) -> str:
        """Return the first key `unusedN` that the configuration does not contain."""
        return next(f"unused{n}" for n in range(256) if f"unused{n}" not in vm.config)

    @staticmethod
    def _apply_hotplug(vm: FakeVm) -> None:
        """Apply the pending values and removals that can be hot-plugged. Drop pending values that change nothing."""
        hotplug_kinds = split_list(vm.config.get("hotplug", "network,disk,usb"))
        for key, value in list(vm.pending.items()):
            is_hotplugged = (
                ("network" in hotplug_kinds and re.fullmatch(r"net\d+", key))
                or ("disk" in hotplug_kinds and DRIVE_KEY.match(key))
                or ("usb" in hotplug_kinds and key.startswith("usb"))
                or ("memory" in hotplug_kinds and key == "memory")
            )
            if is_hotplugged and value is not None:
                vm.config[key] = value
            elif is_hotplugged:
                vm.config.pop(key, None)
            if is_hotplugged or str(vm.config.get(key)) == str(value):
                del vm.pending[key]


def _render_config(config: dict[str, Any], digest: str) -> dict[str, Any]:
    """Return the configuration in the form in which Proxmox sends it, with stars instead of the cloud-init password."""
    # Keys such as `snaptime` belong to snapshots, not to the current configuration.
    sent_config = {key: value for key, value in config.items() if not key.startswith("snap")}
    if "memory" in sent_config:
        sent_config["memory"] = str(sent_config["memory"])
    if "cipassword" in sent_config:
        sent_config["cipassword"] = HIDDEN_PASSWORD
    if sent_config.get("description"):
        # Remove the white space at the end, as parse_vm_config in PVE/QemuServer.pm does.
        sent_config["description"] = str(sent_config["description"]).rstrip()
    for key in ("cores", "sockets", "onboot", "protection", "template"):
        if key in sent_config and str(sent_config[key]).isdigit():
            sent_config[key] = int(sent_config[key])
    return {**sent_config, "digest": digest}
