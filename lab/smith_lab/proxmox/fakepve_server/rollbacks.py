# SPDX-License-Identifier: AGPL-3.0-or-later
"""Refuses a rollback to an older snapshot on a storage that can roll a volume back only to its newest snapshot.

Sources: pve-guest-common: PVE/AbstractConfig.pm, snapshot_rollback; pve-storage: volume_rollback_is_possible in
PVE/Storage/ZFSPoolPlugin.pm and, for the option `snapshot-as-volume-chain` of version 9, PVE/Storage/Plugin.pm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from fakepve.model import TaskError
from fakepve.qemu import drives_of
from fakepve.server import FakePve

ROLLBACK_TASKS = ("qmrollback", "vzrollback")
ZFS_TYPES = ("zfspool", "zfs")
CHAIN_OPTION = "snapshot-as-volume-chain"

#: The name of the snapshot to which the current request rolls a guest back.
_TARGET_SNAPSHOT: ContextVar[str] = ContextVar("snapshot", default="")


class Rollbacks(FakePve):
    """Makes the Proxmox task of a rollback fail, before any change, if a volume cannot be rolled back.

    `v` contains the values of a request: the parameters of the path, the query and the body.
    `ttype` is the type of a Proxmox task, such as `qmrollback`. `tid` is the id that its UPID contains, mostly a
    VMID. `vm` is the VM or the container that the Proxmox task changes, or None. `body` does the work of the Proxmox
    task.
    fakepve is the simulation of Proxmox that this package extends.
    """

    async def _qm_rollback(self, v: dict[str, Any], user: str) -> str:
        with _with_target_snapshot(v["snapname"]):
            return str(await super()._qm_rollback(v, user))

    async def _lxc_rollback(self, user: str, v: dict[str, Any]) -> str:
        with _with_target_snapshot(v["snapname"]):
            return str(await super()._lxc_rollback(user, v))

    async def task(  # noqa: PLR0917 - the signature is fakepve's
        self, node: str, ttype: str, tid: Any, user: str, body: Any, vm: Any = None, **kwargs: Any
    ) -> str:
        """Start a Proxmox task. A rollback fails if a volume has newer snapshots that block the rollback."""
        name = _TARGET_SNAPSHOT.get()

        async def checked_body() -> Any:
            if ttype in ROLLBACK_TASKS and vm is not None:
                self._require_newest_snapshot(vm, name)
            return await body()

        return str(await super().task(node, ttype, tid, user, checked_body, vm=vm, **kwargs))

    def _require_newest_snapshot(self, guest: Any, name: str) -> None:
        """Raise TaskError if a volume can be rolled back only to its newest snapshot, and `name` is an older one."""
        names = list(guest.snapshots)  # oldest first
        newer_names = names[names.index(name) + 1 :] if name in names else []
        for volume in self._newest_only_volumes(guest.snapshots.get(name, {})):
            if any(volume in self._newest_only_volumes(guest.snapshots[other]) for other in newer_names):
                raise TaskError(f"can't rollback, '{name}' is not most recent snapshot on '{volume}'")

    def _newest_only_volumes(self, snapshot: dict[str, Any]) -> list[str]:
        """Return the volumes of a snapshot whose storages can roll back only to the newest snapshot."""
        vm_volumes = [volume for _key, volume, _props in drives_of(snapshot, skip_cdrom=True)]
        container_volumes = [
            str(value).partition(",")[0] for key, value in snapshot.items() if key.startswith(("rootfs", "mp"))
        ]
        return [
            volume
            for volume in (*vm_volumes, *container_volumes)
            if self._can_only_restore_newest(volume.partition(":")[0])
        ]

    def _can_only_restore_newest(self, storage: str) -> bool:
        values = self.storages.get(storage, {})
        return values.get("type") in ZFS_TYPES or bool(values.get(CHAIN_OPTION))


@contextmanager
def _with_target_snapshot(name: str) -> Iterator[None]:
    """Set _TARGET_SNAPSHOT while the `with` block runs. In this block, fakepve starts the Proxmox task."""
    token = _TARGET_SNAPSHOT.set(name)
    try:
        yield
    finally:
        _TARGET_SNAPSHOT.reset(token)
