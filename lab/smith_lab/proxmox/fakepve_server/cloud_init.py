# SPDX-License-Identifier: AGPL-3.0-or-later
"""Records which cloud-init values of a running VM were changed, but are not on the VM's cloud-init drive yet.

As in Proxmox, a changed cloud-init value is part of a running VM's configuration at once, and does not stay pending.
The drive gets the changed value when the VM is started, or by a request that generates the drive again.
"""

from __future__ import annotations

import re
from typing import Any

from fakepve.model import FakeVm

from smith_lab.proxmox.fakepve_server.access import CLOUD_INIT_KEYS
from smith_lab.proxmox.fakepve_server.configuration import HIDDEN_PASSWORD, ConfigurationChanges

#: The keys whose changes Proxmox records for the cloud-init drive.
RECORDED_KEY = re.compile(rf"(?:{'|'.join(CLOUD_INIT_KEYS)}|name|ipconfig\d+|net\d+)")
#: The recorded keys whose pending values `_apply_config` in this file moves into the configuration. `name` and `netN`
#: are missing here, because the base classes apply them: `name` at once, and `netN` unless network hotplug is off.
KEY_APPLIED_AT_ONCE = re.compile(rf"(?:{'|'.join(CLOUD_INIT_KEYS)}|ipconfig\d+)")


class CloudInitDrives(ConfigurationChanges):
    """Records the changes of cloud-init values, and answers the requests to read or apply these changes.

    The record of a VM maps each changed key to the value on the drive, or to None if the drive does not have the key.
    `v` contains the values of a request: the parameters of the path, the query and the body.
    fakepve is the simulation of Proxmox that this package extends. Its method `find` returns the VM, or raises an error
    if the node does not have the VM.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        #: The records by VMID and start time. The start time is None for a VM that was never started.
        self._records: dict[tuple[int, float | None], dict[str, Any]] = {}

    def _routes_cloud_init(self) -> list[tuple[str, str, Any]]:
        """Return the routes of the requests. fakepve calls every method whose name starts with `_routes_`."""
        path = "/nodes/{node}/qemu/{vmid}/cloudinit"
        return [("GET", path, self._cloud_init_get), ("PUT", path, self._cloud_init_put)]

    async def _apply_config(self, vm: FakeVm, user: str, changes: dict[str, Any]) -> None:
        """Change the configuration. Cloud-init values do not stay pending. Record the changes of a running VM."""
        config_before = dict(vm.config)
        await super()._apply_config(vm, user, changes)
        for key in [key for key in vm.pending if KEY_APPLIED_AT_ONCE.fullmatch(key)]:
            value = vm.pending.pop(key)
            if value is None:
                vm.config.pop(key, None)
            else:
                vm.config[key] = value
        if vm.status == "running":
            self._record_changes(vm, config_before)

    def _record_changes(self, vm: FakeVm, config_before: dict[str, Any]) -> None:
        record = self._record_of(vm)
        for key in filter(RECORDED_KEY.fullmatch, {*config_before, *vm.config}):
            old_value, new_value = config_before.get(key), vm.config.get(key)
            if old_value != new_value:
                record.setdefault(key, old_value)
            if key in record and record[key] == new_value:
                del record[key]  # the drive already contains this value

    def _record_of(self, vm: FakeVm) -> dict[str, Any]:
        """Return the record of a VM. It is empty after each start, because a start generates the drive."""
        return self._records.setdefault((vm.vmid, vm.started_at), {})

    async def _cloud_init_get(self, v: dict[str, Any], _user: str) -> list[dict[str, Any]]:
        """Return the cloud-init values of the drive and of the configuration.

        As in Proxmox, the keys `ipconfigN`, `netN` and `name` are listed only if they were added or removed, and not if
        their values were changed.
        """
        vm = self.find(v["node"], v["vmid"])
        record = self._record_of(vm)
        rows = [{"key": key, "pending": vm.config[key]} for key, old in record.items() if old is None]
        # Keys that the drive does not have (None in the record) are already in `rows`.
        # `record.get` returns "" for a key that is not in the record.
        for key in CLOUD_INIT_KEYS:
            if key in vm.config and record.get(key, "") is not None:
                changed_values = {"value": record[key], "pending": vm.config[key]} if key in record else {}
                rows.append({"key": key, **(changed_values or {"value": vm.config[key]})})
        rows += [{"key": key, "delete": 1} for key in record if key not in vm.config]
        return [_without_password(row) for row in rows]

    async def _cloud_init_put(self, v: dict[str, Any], _user: str) -> None:
        """Generate the cloud-init drive again."""
        vm = self.find(v["node"], v["vmid"])
        self._check_lock(vm)
        self._record_of(vm).clear()


def _without_password(row: dict[str, Any]) -> dict[str, Any]:
    if row["key"] != "cipassword":
        return row
    return {name: HIDDEN_PASSWORD if name in ("value", "pending") else value for name, value in row.items()}
