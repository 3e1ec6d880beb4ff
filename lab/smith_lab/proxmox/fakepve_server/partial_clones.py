# SPDX-License-Identifier: AGPL-3.0-or-later
"""Hides the configuration of a clone until its first drive is copied (qemu-server: PVE/API2/Qemu.pm, clone_vm).

Until the first drive is copied, the configuration file contains only a comment and the lock. So the clone has no name,
no tags and no drives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fakepve.model import FakeVm
from fakepve.qemu import DRIVE_KEY, is_cdrom, split_drive, volume_ref

from smith_lab.proxmox.fakepve_server.tasks import CLOUD_INIT_VOLUME, TimedTasks

#: The configuration of a clone whose first drive is being copied. Proxmox reads the comment as the description.
TEMPORARY_CONFIG = {"description": " qmclone temporary file", "lock": "clone"}


class PartialClones(TimedTasks):
    """Hides a clone's configuration until its first drive is copied. The drives are copied in order of their keys.

    fakepve is the library on which the Proxmox stand-in is built. `time_scale` is the number of real seconds for each
    second of simulated Proxmox time; with 0, every Proxmox task ends at once. `task_seconds` contains the simulated
    seconds of each type of Proxmox task. `pause` waits for a number of simulated seconds.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        #: The asyncio tasks that restore a configuration. Without these references, Python may garbage-collect them.
        self._restore_tasks: set[asyncio.Future[None]] = set()

    async def task(  # noqa: PLR0917 - the signature is fakepve's
        self, node: str, ttype: str, tid: Any, user: str, body: Any, vm: Any = None, **kwargs: Any
    ) -> str:
        """Start a Proxmox task. During a `qmclone`, the configuration of the clone `vm` is hidden at first.

        `ttype` is the type of the Proxmox task. `body` does its work after the simulated duration. For a `qmclone`,
        `tid` is the VMID of the source, and `vm` is the clone.
        """
        if ttype != "qmclone" or vm is None or not self.time_scale:
            return str(await super().task(node, ttype, tid, user, body, vm=vm, **kwargs))
        source = self.vm(int(tid))
        first_drive_share = _share_of_first_drive(source.config if source else {})
        restore_config = _hide_config(vm)

        async def restore_and_complete() -> Any:
            restore_config()
            return await body()

        async def restore_after_first_drive() -> None:
            await self.pause(self.task_seconds["qmclone"] * first_drive_share)
            restore_config()

        upid = str(await super().task(node, ttype, tid, user, restore_and_complete, vm=vm, **kwargs))
        restore_task = asyncio.ensure_future(restore_after_first_drive())
        self._restore_tasks.add(restore_task)
        restore_task.add_done_callback(self._restore_tasks.discard)
        return upid


def _hide_config(vm: FakeVm) -> Callable[[], None]:
    """Replace the configuration and the name of a clone; return the function that restores them."""
    config, name, temporary_config = vm.config, vm.name, dict(TEMPORARY_CONFIG)
    vm.config, vm.name = temporary_config, f"VM {vm.vmid}"  # Proxmox lists a VM without a name as `VM <VMID>`

    def restore() -> None:
        if vm.config is temporary_config:
            vm.config, vm.name = config, name

    return restore


def _share_of_first_drive(config: dict[str, Any]) -> float:
    """Return the fraction (0 to 1) of a `qmclone`'s duration that the copying of the first drive takes.

    Return 0 if the first drive is a cloud-init drive, for which Proxmox copies no data, or if the source has no drive
    to copy.
    """
    drives = [split_drive(value) for key, value in sorted(config.items()) if DRIVE_KEY.match(key)]
    # All new volumes get equal shares. Proxmox makes a new volume for a cloud-init drive, but not for other CD-ROM
    # drives.
    copied_volumes = [volume for volume, props in drives if _is_cloud_init(volume) or not is_cdrom(volume, props)]
    return 0.0 if not copied_volumes or _is_cloud_init(copied_volumes[0]) else 1 / len(copied_volumes)


def _is_cloud_init(volume: str) -> bool:
    return CLOUD_INIT_VOLUME.search(volume_ref(volume)[1]) is not None
