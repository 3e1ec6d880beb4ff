# SPDX-License-Identifier: Apache-2.0
"""Finds volumes of a deleted guest that still exist: after its deletion, and again before a new guest gets the VMID.

Proxmox deletes a guest even if it cannot remove one of its disks, and it does not remove a volume that only a snapshot
names. A volume that is left may be a cloud-init drive, which contains the hash of a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .client import REQUEST_ERRORS, error_text
from .proxmox_tasks import volumes_left_in

if TYPE_CHECKING:
    from .cluster import Cluster

#: The code at the beginning of the warning about volumes that still exist.
VOLUMES_LEFT = "VOLUMES_LEFT"
#: The keys of a configuration whose values name volumes.
VOLUME_KEY = re.compile(r"(?:scsi|virtio|sata|ide|efidisk|tpmstate|unused|mp)\d+\Z|rootfs\Z|vmstate\Z")
#: A key whose volume the guest does not use. `qm rescan` adds such a key for each volume with the VMID that it finds on
#: the storages; this volume may belong to another cluster.
UNUSED_KEY = re.compile(r"unused\d+\Z")
#: A volume of a guest, in one of the comma-separated parts of a value. Group 1: its id. Group 2: the VMID of its owner.
_VOLUME = re.compile(
    r"(?:file=|volume=)?([A-Za-z][\w.-]*:(?:(?!iso/|vztmpl/)\S*/)?(?:vm|base|subvol|basevol)-(\d+)-\S+)\Z"
)


def volumes_in(config: Iterable[tuple[str, Any]], vmid: int) -> set[str]:
    """Return the ids of the volumes that a configuration names and that belong to this VMID."""
    parts = [part for key, value in config if VOLUME_KEY.match(key) for part in str(value).split(",")]
    found = [match for part in parts if (match := _VOLUME.match(part))]
    return {match.group(1) for match in found if int(match.group(2)) == vmid}


def snapshot_volumes(cluster: Cluster, node: str, vmid: int) -> set[str]:
    """Return the volumes that the guest's snapshots name."""
    names = [snapshot["name"] for snapshot in cluster.snapshots(node, vmid)]
    configs = [cluster.guest(node, vmid).snapshot(name).config.get() for name in names]
    return {volume for config in configs for volume in volumes_in(config.items(), vmid)}


def list_volumes(cluster: Cluster, node: str, storages: Iterable[str], vmid: int) -> tuple[set[str], list[str]]:
    """Return the VMID's volumes on these storages, and a text `STORAGE: reason` for each that cannot be read."""
    found: set[str] = set()
    unreadable = []
    for storage in sorted(storages):
        try:
            found.update(cluster.volumes(node, storage, vmid))
        except REQUEST_ERRORS as exc:
            unreadable.append(f"{storage}: {error_text(exc)}")
    return found, unreadable


def existing(cluster: Cluster, node: str, vmid: int, volumes: Iterable[str]) -> set[str]:
    """Return those volumes in `volumes` that exist, and those whose storage cannot be read."""
    volumes = set(volumes)
    listed, unreadable = list_volumes(cluster, node, storages_of(volumes), vmid)
    return (volumes & listed) | _on_storages_of(unreadable, volumes)


def volumes_left(
    cluster: Cluster, node: str, vmid: int, volumes_before: set[str], upids: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Return the volumes of a deleted guest that still exist, and the storages that cannot be read.

    `volumes_before` contains the guest's volumes before the deletion. The result has those of them that their storage
    still lists, and the volumes that the Proxmox tasks `upids` could not remove, as the logs of these tasks state.
    """
    logged = volumes_left_in([line for upid in upids for line in cluster.log(upid)])
    listed, unreadable = list_volumes(cluster, node, storages_of(volumes_before), vmid)
    return sorted((volumes_before & listed) | set(logged)), unreadable


def volumes_left_by_earlier_deletion(cluster: Cluster, vmid: int, upid: str) -> tuple[list[str], list[str], list[str]]:
    """Return what is left of a guest that the Proxmox task `upid` deleted some time ago.

    Return three lists: the volumes that the task's log names and that still exist; the VMID's other volumes on the node
    of the task; and the storages that cannot be read. The other volumes are those that only a snapshot named, but on a
    shared storage they may belong to another cluster.
    """
    node = upid.split(":")[1]
    logged = set(volumes_left_in(cluster.log(upid)))
    listed, unreadable = list_volumes(cluster, node, storages_of(logged) | cluster.disk_storages(node), vmid)
    return sorted((logged & listed) | _on_storages_of(unreadable, logged)), sorted(listed - logged), unreadable


def _on_storages_of(unreadable: Iterable[str], volumes: Iterable[str]) -> set[str]:
    """Return the volumes in `volumes` on unreadable storages. `unreadable` has texts of the form `STORAGE: reason`."""
    storages = {problem.partition(":")[0] for problem in unreadable}
    return {volume for volume in volumes if volume.partition(":")[0] in storages}


def storages_of(volumes: Iterable[str]) -> set[str]:
    """Return the storages of these volumes."""
    return {volume.partition(":")[0] for volume in volumes}


def storages_of_new_guest(vm: dict[str, Any], template: dict[str, Any]) -> set[str]:
    """Return the storages that a new guest will have volumes on: those of the request and of its template."""
    config = template.get("config", {})
    drives = [str(value).partition(",")[0] for key, value in config.items() if VOLUME_KEY.match(key)]
    of_template = {drive.partition(":")[0] for drive in drives if _VOLUME.match(drive)}
    requested = [vm.get("storage"), *(disk.get("storage") for disk in vm.get("disks") or [])]
    return of_template | {str(storage) for storage in requested if storage}


def reuse_problem(cluster: Cluster, node: str, vmid: int, storages: Iterable[str]) -> str:
    """Return a problem if the former guest of a free VMID has left volumes on one of these storages; '' if not.

    By the VMID in their names, these would become volumes of a new guest. Raises one of REQUEST_ERRORS if a storage
    cannot be read. A storage on which the login has no privilege is not checked, because Proxmox refuses to create a
    volume there.
    """
    found = []
    for storage in sorted(storages):
        try:
            found += sorted(cluster.volumes(node, storage, vmid))
        except REQUEST_ERRORS as exc:
            if getattr(exc, "status_code", 0) != 403:
                raise
    return f"VM_ID_TAKEN: VMID {vmid} has volumes of a former guest: {', '.join(found)}" if found else ""


def volumes_left_warning(vmid: int, volumes: Iterable[str], of_unknown_owner: Sequence[str] = ()) -> str:
    """Return the warning about the volumes that still exist after a guest's deletion.

    The volumes in `of_unknown_owner` have the VMID, but may belong to another guest.
    """
    of_guest = ", ".join(volume for volume in volumes if volume not in of_unknown_owner)
    texts = []
    if of_guest:
        texts.append(f"Proxmox could not remove these volumes: {of_guest} (remove them by hand: pvesm free VOLUME)")
    if of_unknown_owner:
        text = f"these volumes with its VMID exist: {', '.join(of_unknown_owner)}"
        texts.append(f"{text} (remove them by hand, unless a guest of another cluster uses them)")
    end = f"No new guest gets VMID {vmid} while one of these volumes exists"
    return f"{VOLUMES_LEFT}: VM {vmid} is deleted, but {', and '.join(texts)}. {end}"
