# SPDX-License-Identifier: AGPL-3.0-or-later
"""Proxmox tasks that take time and can fail."""

from __future__ import annotations

import re
import time
from typing import Any

from fakepve.model import FakeVm, TaskError
from fakepve.qemu import drives_of, join_drive, volume_ref
from fakepve.server import FakePve

#: Seconds of Proxmox time that a task of each type takes; nothing at time scale 0.
TASK_SECONDS = {
    "qmclone": 10,
    "qmstart": 2,
    "qmdestroy": 2,
    "resize": 1,
    "qmsnapshot": 2,
    "qmrollback": 3,
    "qmmove": 8,
    "vzdump": 5,
}
CLOUD_INIT = re.compile(r"(?:^|/)vm-\d+-cloudinit")


class TimedTasks(FakePve):
    """Tasks take the time of their type; a clone gets its own cloud-init volume."""

    async def task(  # noqa: PLR0917 - fakepve's own signature
        self, node: str, ttype: str, tid: Any, user: str, body: Any, vm: Any = None, **kwargs: Any
    ) -> str:
        """Start a task that takes its type's time, and fails when a task fault says so."""

        async def whole() -> Any:
            await self.pause(self.task_seconds.get(ttype, 0))
            self._raise_task_fault(ttype, tid, vm)
            note = await body()
            if ttype == "qmclone" and vm is not None:
                self._give_own_cloud_init(vm)
            return note

        return str(await super().task(node, ttype, tid, user, whole, vm=vm, **kwargs))

    def _raise_task_fault(self, ttype: str, tid: Any, vm: Any) -> None:
        for fault in self.task_faults:
            if fault["type"] != ttype or fault["vmid"] not in (None, int(tid or 0), getattr(vm, "vmid", None)):
                continue
            fault["times"] -= 1
            if fault["times"] == 0:
                self.task_faults.remove(fault)
            for guests in (self.vms, self.cts):
                if ttype in ("qmclone", "qmcreate", "vzcreate") and vm in guests:
                    guests.remove(vm)  # Proxmox rolls back what it could not make
            raise TaskError(fault["text"])

    def _give_own_cloud_init(self, vm: FakeVm) -> None:
        """Proxmox makes a new cloud-init volume for a clone; fakepve leaves the template's in place."""
        for key, volume, props in drives_of(vm.config):
            storage, name = volume_ref(volume)
            if storage and CLOUD_INIT.search(name):
                vm.config[key] = join_drive(self._new_cloud_init(storage, vm.vmid), props)

    def _new_cloud_init(self, storage: str, vmid: int) -> str:
        name = f"vm-{vmid}-cloudinit"
        volume = {"content": "images", "format": "raw", "size": 4 * 1024**2, "vmid": vmid, "ctime": int(time.time())}
        self.storages[storage].setdefault("volumes", {})[name] = volume
        return f"{storage}:{name}"
