# SPDX-License-Identifier: Apache-2.0
"""Finds the volumes of a deleted guest that still exist, after its deletion and before a new guest gets its VMID.

Proxmox removes a guest also if it cannot remove one of its disks, and it does not remove a volume that only a snapshot
names. The cloud-init drive is such a volume, too: it contains the hash of a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .proxmox_tasks import volumes_left_in

if TYPE_CHECKING:
    from .cluster import Cluster

#: The code of the warning.
VOLUMES_LEFT = "VOLUMES_LEFT"
#: The keys of a configuration whose values name volumes.
VOLUME_KEY = re.compile(r"(?:scsi|virtio|sata|ide|efidisk|tpmstate|unused|mp)\d+\Z|rootfs\Z|vmstate\Z")
#: A volume of a guest, in one part of such a value. Group 1 is its id, group 2 the VMID of its owner.
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


def volumes_left(cluster: Cluster, node: str, vmid: int, expected: Iterable[str], upids: Iterable[str]) -> list[str]:
    """Return the volumes of a deleted guest that still exist.

    They are those of the volumes `expected` that their storage lists, and those that the logs of the Proxmox tasks
    `upids` name: Proxmox lists no volume for which the login has no privilege any more.
    """
    expected = set(expected)
    logged = volumes_left_in([line for upid in upids for line in cluster.log(upid)])
    storages = {volume.partition(":")[0] for volume in expected}
    listed = {volume for storage in sorted(storages) for volume in cluster.volumes(node, storage, vmid)}
    return sorted((expected & listed) | set(logged))


def storages_of_new_guest(vm: dict[str, Any], template: dict[str, Any]) -> set[str]:
    """Return the storages that a new guest will have volumes on: those of the request and of its template."""
    config = template.get("config", {})
    drives = [str(value).partition(",")[0] for key, value in config.items() if VOLUME_KEY.match(key)]
    of_template = {drive.partition(":")[0] for drive in drives if _VOLUME.match(drive)}
    requested = [vm.get("storage"), *(disk.get("storage") for disk in vm.get("disks") or [])]
    return of_template | {str(storage) for storage in requested if storage}


def reuse_problem(cluster: Cluster, node: str, vmid: int, storages: Iterable[str]) -> str:
    """Return why a free VMID must not be used: its former guest has left volumes on one of these storages.

    A new guest would have them under its own names.
    """
    found = sorted(volume for storage in sorted(storages) for volume in cluster.volumes(node, storage, vmid))
    return f"VM_ID_TAKEN: VMID {vmid} has volumes of a former guest: {', '.join(found)}" if found else ""


def warning(vmid: int, volumes: Iterable[str]) -> str:
    """Return the warning about the volumes of a deleted guest that still exist."""
    text = f"VM {vmid} is deleted, but Proxmox could not remove {', '.join(volumes)}"
    return f"{VOLUMES_LEFT}: {text}: remove it by hand; no new guest may get the VMID until then"
