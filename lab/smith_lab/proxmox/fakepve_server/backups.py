# SPDX-License-Identifier: AGPL-3.0-or-later
"""Handles the request vzdump: makes a backup.

fakepve, the simulation of Proxmox that this package extends, answers this request, but makes no backup. Here, as in
Proxmox, the request starts a Proxmox task that makes the backup. The request succeeds, and only the Proxmox task fails,
if the storage is wrong, if the guest is missing or locked, or if the caller may not back the guest up.
"""

from __future__ import annotations

import itertools
import re
import time
from typing import Any

from fakepve.model import TaskError
from fakepve.routing import split_list

from smith_lab.proxmox.fakepve_server.tasks import TimedTasks

GIB = 1024**3


class Backups(TimedTasks):
    """Makes archives (backups) of guests.

    `v` contains the values of a request: the parameters of the path, the query and the body. fakepve's method
    `need_quorum` raises PveError if the cluster has no quorum, `_qm_lock` sets or removes the lock of any guest, and
    `pause` waits for a number of simulated seconds. `task_seconds` contains this number for each type of Proxmox task.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._archive_numbers = itertools.count()

    def _routes_backups(self) -> list[tuple[str, str, Any]]:
        """Return the route of the request. fakepve calls every method whose name starts with `_routes_`."""
        return [("POST", "/nodes/{node}/vzdump", self._vzdump)]

    async def _vzdump(self, v: dict[str, Any], user: str) -> str:
        """Start a Proxmox task that backs up one guest; return its UPID, or OK if the guest is on another node."""
        vmid, storage = int(v["vmid"]), str(v.get("storage") or "local")
        guest = self.vm(vmid) or self.ct(vmid)
        self.need_quorum()
        if guest is not None and guest.node != v["node"]:
            return "OK"
        self.require(user, f"/storage/{storage}", "Datastore.AllocateSpace")

        async def back_up() -> None:
            self._check_backup_storage(storage)
            if guest is None or guest not in [*self.vms, *self.cts]:
                raise self._log_backup_error(vmid, f"unable to find VM '{vmid}'")
            if not self.allowed(user, f"/vms/{vmid}", "VM.Backup"):
                raise TaskError(f"403 Permission check failed (/vms/{vmid}, VM.Backup)")
            if guest.lock:
                raise self._log_backup_error(vmid, f"VM is locked ({guest.lock})")
            self._check_backup_limit(guest, storage, may_remove_old_archives=bool(v.get("remove", 1)))
            self._qm_lock(guest, "backup")
            try:
                # As in Proxmox, the guest is locked during the backup. The whole Proxmox task takes twice
                # `task_seconds["vzdump"]`, because `task` waits for the same time before it calls `back_up`.
                await self.pause(self.task_seconds["vzdump"])
            finally:
                self._qm_lock(guest, None)
            self._add_archive(guest, storage, str(v.get("notes-template") or ""))
            if v.get("remove", 1):
                self._prune_archives(vmid, storage)

        return await self.task(v["node"], "vzdump", vmid, user, back_up, vm=guest)

    def _check_backup_storage(self, storage: str) -> None:
        """Raise TaskError if the storage does not exist or does not accept backups."""
        if storage not in self.storages:
            raise TaskError(f"could not activate storage '{storage}': storage '{storage}' does not exist")
        if "backup" not in split_list(self.storages[storage].get("content")):
            cause = f"can't use storage '{storage}' for backups - wrong content type"
            raise TaskError(f"could not get storage information for '{storage}': {cause}")

    def _log_backup_error(self, vmid: int, cause: str) -> TaskError:
        """Write the cause to the log of the guest's newest backup task. Return the exception that ends this task."""
        self._log_of("vzdump", str(vmid)).append(f"ERROR: Backup of VM {vmid} failed - {cause}")
        return TaskError("job errors")

    def _check_backup_limit(self, guest: Any, storage: str, *, may_remove_old_archives: bool) -> None:
        """Raise TaskError if the storage's limit for archives of the guest is reached and old ones must be kept."""
        limit = self._backup_limit(storage)
        if limit and not may_remove_old_archives and len(self._archives_of(guest.vmid, storage)) >= limit:
            text = (
                f"There is a max backup limit of {limit} enforced by the target storage or the vzdump parameters. "
                "Either increase the limit or delete old backups."
            )
            raise self._log_backup_error(guest.vmid, text)

    def _backup_limit(self, storage: str) -> int:
        """Return how many archives of a guest the storage keeps: N in `prune-backups: keep-last=N`. 0 means all."""
        match = re.fullmatch(r"keep-last=(\d+)", str(self.storages[storage].get("prune-backups") or ""))
        return int(match.group(1)) if match else 0

    def _archives_of(self, vmid: int, storage: str) -> list[str]:
        """Return the names of the guest's archives, oldest first."""
        volumes = self.storages[storage].setdefault("volumes", {})
        return [name for name, volume in volumes.items() if (volume["content"], volume["vmid"]) == ("backup", vmid)]

    def _add_archive(self, guest: Any, storage: str, notes_template: str) -> None:
        kind, suffix = ("lxc", "tar.zst") if guest in self.cts else ("qemu", "vma.zst")
        archive = {"content": "backup", "format": suffix, "size": GIB, "vmid": guest.vmid, "ctime": int(time.time())}
        if notes_template:
            values = {"guestname": guest.name, "node": guest.node, "vmid": str(guest.vmid), "cluster": "stand-in"}
            text = notes_template.replace("\\n", "\n")
            archive["notes"] = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match.group(1)], text)
        name = f"backup/vzdump-{kind}-{guest.vmid}-{next(self._archive_numbers):04d}.{suffix}"
        self.storages[storage].setdefault("volumes", {})[name] = archive

    def _prune_archives(self, vmid: int, storage: str) -> None:
        """Remove the archives of a guest that exceed the retention of the storage, oldest first."""
        limit, archives = self._backup_limit(storage), self._archives_of(vmid, storage)
        for name in archives[: len(archives) - limit] if limit else []:
            del self.storages[storage]["volumes"][name]
