# SPDX-License-Identifier: AGPL-3.0-or-later
"""Simulates Proxmox tasks that take time. A Proxmox task fails if a test has added a fault for it.

The base class FakePve is from fakepve, a library that simulates the Proxmox API.
"""

from __future__ import annotations

import re
import time
from typing import Any

from fakepve.model import FakeVm, TaskError
from fakepve.qemu import drives_of, join_drive, volume_ref
from fakepve.server import FakePve

#: How many Proxmox seconds (seconds of simulated time) a Proxmox task of each type takes. The attribute `time_scale` of
#: the simulated cluster is the number of real seconds in a Proxmox second.
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
#: Types of Proxmox tasks that copy a disk and log their progress.
COPYING_TASKS = ("qmclone", "qmmove")
#: Types of Proxmox tasks that create a guest.
CREATING_TASKS = ("qmclone", "qmcreate", "vzcreate")
#: Types of Proxmox tasks that allocate a disk.
ALLOCATING_TASKS = (*CREATING_TASKS, "qmmove")
#: Proxmox's error texts for a busy storage. The first two are from pve-cluster: PVE/Cluster.pm, cfs_lock.
LOCK_TIMEOUT_TEXTS = (
    "cfs-lock 'storage-local-lvm' error: got lock request timeout",  # the lock is not free in time
    "'storage-local-lvm'-locked command timed out - aborting",  # the work under the lock takes too long
    "can't acquire lock '/var/lock/pve-manager/pve-storage-local-lvm' - got timeout",  # the lock is not free in time
    "command '/usr/bin/qemu-img resize' failed: got timeout",  # the command takes too long
)
#: Matches the name of a cloud-init volume, such as `vm-100-cloudinit` or `100/vm-100-cloudinit.qcow2`.
CLOUD_INIT_VOLUME = re.compile(r"(?:^|/)vm-\d+-cloudinit")
#: The size of a cloud-init volume.
CLOUD_INIT_BYTES = 4 * 1024**2


class TimedTasks(FakePve):
    """Makes each Proxmox task take the time in `task_seconds`, and gives each clone its own cloud-init volume."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        #: Each fault makes some Proxmox tasks fail. `do_fail_task` in verbs_cluster.py adds and explains faults.
        self.task_faults: list[dict[str, Any]] = []
        self.task_seconds = dict(TASK_SECONDS)  #: Proxmox seconds, by type of Proxmox task
        self.unremovable_volumes: set[str] = set()  #: ids of volumes that Proxmox cannot remove
        self.filled_bytes: dict[str, int] = {}  #: how many bytes a test has filled, by storage
        #: If 3, every third allocation of a disk fails with a timeout of the storage's lock. If 0, none fails.
        self.allocations_per_lock_timeout = 0
        #: How many Proxmox tasks have allocated a disk since `allocations_per_lock_timeout` was set.
        self.allocation_count = 0

    async def task(  # noqa: PLR0917 - the signature is fakepve's
        self, node: str, ttype: str, tid: Any, user: str, body: Any, vm: Any = None, **kwargs: Any
    ) -> str:
        """Start a Proxmox task of the type `ttype`, such as `qmclone`.

        The Proxmox task waits for the seconds in `task_seconds`. Then it calls `body`, the function that does the work.
        A fault that matches the Proxmox task makes it fail before `body` is called. If the fault's member `after` is
        true, it fails after `body` has done the work. `tid` is the id of the object on which the Proxmox task works,
        mostly a VMID. `vm` is the guest that the Proxmox task changes or creates.
        """

        async def timed_body() -> Any:
            await self._pause_with_progress(ttype, str(tid))
            self._fail_if_lock_timeout_is_due(ttype, vm)
            fault = self._use_matching_fault(ttype, tid, vm)
            if fault and not fault.get("after"):
                self._fail_with_fault(fault, ttype, tid, vm)
            result = await body()
            if ttype == "qmclone" and vm is not None:
                self._replace_cloud_init_volume(vm)
            if ttype == "qmdestroy":
                self._fail_if_warnings_were_logged(str(tid))
            if fault:
                self._fail_with_fault(fault, ttype, tid, vm)
            return result

        if ttype == "qmclone" and self.version.startswith("8."):
            # `log` contains the first line of the Proxmox task's log. Proxmox 8 does not write this line.
            kwargs["log"] = []
        return str(await super().task(node, ttype, tid, user, timed_body, vm=vm, **kwargs))

    async def _pause_with_progress(self, ttype: str, tid: str) -> None:
        """Wait for the time of a Proxmox task. If it copies a disk, also log its progress, as in Proxmox."""
        seconds = self.task_seconds.get(ttype, 0)  # Proxmox seconds, as fakepve's `pause` expects
        if ttype not in COPYING_TASKS:
            await self.pause(seconds)
            return
        log = self._log_of(ttype, tid)
        for tenth in range(1, 11):
            await self.pause(seconds / 10)
            log.append(f"transferred {tenth * 0.8:.1f} GiB of 8.0 GiB ({tenth * 10}.00%)")

    def _qm_free(self, volid: str) -> None:
        """Remove the volume with the id `volid`, unless it is an ISO image, which belongs to no guest.

        A volume that cannot be removed stays. A warning is logged, and the deletion of its VM continues.
        """
        if str(volume_ref(volid)[1]).startswith("iso/"):
            return
        if volid in self.unremovable_volumes:
            vmid = re.search(r"vm-(\d+)-", volid).group(1)  # type: ignore[union-attr]
            self._log_of("qmdestroy", vmid).append(f"WARN: Could not remove disk '{volid}', check manually: busy")
        else:
            super()._qm_free(volid)

    def _fail_if_warnings_were_logged(self, tid: str) -> None:
        """Raise TaskError `WARNINGS: <count>` if the deletion of a VM logged warnings. Proxmox 8 ignores warnings."""
        count = sum(line.startswith("WARN: ") for line in self._log_of("qmdestroy", tid))
        if count and not self.version.startswith("8."):
            raise TaskError(f"WARNINGS: {count}")

    def _log_of(self, ttype: str, tid: str) -> list[str]:
        """Return the log of the newest Proxmox task of the type `ttype` that works on the object `tid`."""
        return next(task["log"] for task in reversed(self.tasklog) if (task["type"], task["id"]) == (ttype, tid))

    def _fail_if_lock_timeout_is_due(self, ttype: str, vm: Any) -> None:
        """Count an allocation. For every n-th allocation, raise TaskError with the next text of LOCK_TIMEOUT_TEXTS.

        Before TaskError is raised, a guest that the Proxmox task has begun to create is removed.
        """
        if not self.allocations_per_lock_timeout or ttype not in ALLOCATING_TASKS:
            return
        self.allocation_count += 1
        if self.allocation_count % self.allocations_per_lock_timeout:
            return
        text = LOCK_TIMEOUT_TEXTS[self.allocation_count // self.allocations_per_lock_timeout % len(LOCK_TIMEOUT_TEXTS)]
        if ttype in CREATING_TASKS:
            self._remove_guest(vm)
        raise TaskError(f"clone failed: {text}" if ttype == "qmclone" else text)

    def _use_matching_fault(self, ttype: str, tid: Any, vm: Any) -> dict[str, Any] | None:
        """Return the first fault that matches this Proxmox task, or None.

        The fault's `times` is how many more Proxmox tasks it makes fail. If `times` is negative, all fail. Each match
        reduces `times` by one. At 0, the fault is removed.
        """
        for fault in self.task_faults:
            # A fault without a VMID matches all Proxmox tasks of its type. For a qmclone, `tid` is the VMID of the
            # template, and `vm` is the clone. A fault with either VMID matches.
            matching_vmids = (None, int(tid or 0), getattr(vm, "vmid", None))
            if fault["type"] != ttype or fault["vmid"] not in matching_vmids:
                continue
            fault["times"] -= 1
            if fault["times"] == 0:
                self.task_faults.remove(fault)
            return fault
        return None

    def _fail_with_fault(self, fault: dict[str, Any], ttype: str, tid: Any, vm: Any) -> None:
        """Write the fault's lines to the log of the Proxmox task, and raise TaskError with the fault's text.

        If the fault names a lock, this lock is set on the guest. Otherwise, a guest that this Proxmox task creates is
        removed. With the text `WARNINGS: <count>`, the guest stays, because Proxmox counts this as success.
        """
        self._log_of(ttype, str(tid)).extend(fault.get("log") or [])
        if lock := fault.get("leaves_lock"):
            self._set_lock_of_fault(vm, lock)
        elif ttype in CREATING_TASKS and not fault["text"].startswith("WARNINGS"):
            self._remove_guest(vm)
        raise TaskError(fault["text"])

    def _set_lock_of_fault(self, guest: Any, lock: str) -> None:
        """Set a guest's lock. If it is `destroyed`, first remove the guest's disks and config, as a deletion does."""
        if lock == "destroyed":
            for _key, volume, _props in drives_of(guest.config):
                self._qm_free(volume)
            guest.config, guest.pending, guest.snapshots, guest.name = {}, {}, {}, f"VM {guest.vmid}"
        self._qm_lock(guest, lock)

    def _remove_guest(self, guest: Any) -> None:
        """Remove a guest and its volumes, as Proxmox does."""
        for _key, volume, _props in drives_of(guest.config):
            if f"vm-{guest.vmid}-" in volume and volume not in self.unremovable_volumes:
                self._qm_free(volume)
        for guests in (self.vms, self.cts):
            if guest in guests:
                guests.remove(guest)

    def _replace_cloud_init_volume(self, vm: FakeVm) -> None:
        """Give a clone its own cloud-init volume, as Proxmox does. In fakepve, a clone has the template's volume."""
        for key, volume, props in drives_of(vm.config):
            storage, name = volume_ref(volume)
            if storage and CLOUD_INIT_VOLUME.search(name):
                vm.config[key] = join_drive(self._add_cloud_init_volume(storage, vm.vmid), props)

    def _add_cloud_init_volume(self, storage: str, vmid: int) -> str:
        """Add a cloud-init volume for a VM to a storage; return the volume's id."""
        name = f"vm-{vmid}-cloudinit"
        volume = {
            "content": "images",
            "format": "raw",
            "size": CLOUD_INIT_BYTES,
            "vmid": vmid,
            "ctime": int(time.time()),
        }
        self.storages[storage].setdefault("volumes", {})[name] = volume
        if "avail" in self.storages[storage]:
            self.storages[storage]["avail"] -= CLOUD_INIT_BYTES
        return f"{storage}:{name}"
