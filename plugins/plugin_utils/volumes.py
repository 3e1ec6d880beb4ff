# SPDX-License-Identifier: Apache-2.0
"""Finds volumes that still exist after the deletion of their guest.

The search runs after the deletion, and again before a new guest gets the VMID.

Proxmox deletes a guest even if it cannot remove one of the guest's disks, and it does not remove a volume that only a
snapshot names. Such a volume may be a cloud-init drive, which contains the hash of a password. `REQUEST_ERRORS` are
the exceptions of a failed request to Proxmox.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .client import REQUEST_ERRORS, error_text
from .proxmox_tasks import volumes_left_in_log

if TYPE_CHECKING:
    from .cluster import Cluster

#: The code at the beginning of the warning about volumes that still exist.
VOLUMES_LEFT = "VOLUMES_LEFT"
#: Matches the keys of a configuration whose values name volumes.
VOLUME_KEY = re.compile(r"(?:scsi|virtio|sata|ide|efidisk|tpmstate|unused|mp)\d+\Z|rootfs\Z|vmstate\Z")
#: Matches a key whose volume the guest does not use. `qm rescan` searches the storages for unused volumes that have the
#: guest's VMID in their names, and adds such a key for each. On a shared storage, the volume may belong to another
#: cluster.
UNUSED_KEY = re.compile(r"unused\d+\Z")
#: Matches a comma-separated part of a value if the part names a guest's volume. Group 1 is the volume's id, group 2 the
#: VMID in the volume's name.
_VOLUME = re.compile(
    r"(?:file=|volume=)?([A-Za-z][\w.-]*:(?:(?!iso/|vztmpl/)\S*/)?(?:vm|base|subvol|basevol)-(\d+)-\S+)\Z"
)


def volumes_in(config: Iterable[tuple[str, Any]], vmid: int) -> set[str]:
    """Return the ids of the volumes that a configuration names and that belong to this VMID."""
    parts = [part for key, value in config if VOLUME_KEY.match(key) for part in str(value).split(",")]
    matches = [match for part in parts if (match := _VOLUME.match(part))]
    return {match.group(1) for match in matches if int(match.group(2)) == vmid}


def snapshot_volumes(cluster: Cluster, node: str, vmid: int) -> set[str]:
    """Return the volumes that the guest's snapshots name."""
    names = [snapshot["name"] for snapshot in cluster.snapshots(node, vmid)]
    configs = [cluster.guest(node, vmid).snapshot(name).config.get() for name in names]
    return {volume for config in configs for volume in volumes_in(config.items(), vmid)}


def list_volumes(cluster: Cluster, node: str, storages: Iterable[str], vmid: int) -> tuple[set[str], list[str]]:
    """Return the VMID's volumes on these storages, and a text `STORAGE: reason` for each unreadable storage."""
    found_volumes: set[str] = set()
    unreadable_storages = []
    for storage in sorted(storages):
        try:
            found_volumes.update(cluster.volume_ids(node, storage, vmid))
        except REQUEST_ERRORS as exc:
            unreadable_storages.append(f"{storage}: {error_text(exc)}")
    return found_volumes, unreadable_storages


def existing_or_unreadable_volumes(cluster: Cluster, node: str, vmid: int, volumes: Iterable[str]) -> set[str]:
    """Return the volumes in `volumes` that exist, and the volumes on unreadable storages, which may exist."""
    volumes = set(volumes)
    listed_volumes, unreadable_storages = list_volumes(cluster, node, storages_of(volumes), vmid)
    return (volumes & listed_volumes) | _volumes_on_unreadable_storages(unreadable_storages, volumes)


def find_volumes_left(
    cluster: Cluster, node: str, vmid: int, volumes_before: set[str], upids: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Return the volumes of a deleted guest that still exist, and a text about each storage that cannot be read.

    `volumes_before` contains the guest's volumes before the deletion. The result has the volumes in `volumes_before`
    that their storage still lists, and the volumes that the deletion could not remove, according to the logs of its
    Proxmox tasks `upids`.
    """
    logged_volumes = volumes_left_in_log([line for upid in upids for line in cluster.log(upid)])
    listed_volumes, unreadable_storages = list_volumes(cluster, node, storages_of(volumes_before), vmid)
    return sorted((volumes_before & listed_volumes) | set(logged_volumes)), unreadable_storages


def find_volumes_left_by_earlier_deletion(
    cluster: Cluster, vmid: int, upid: str
) -> tuple[list[str], list[str], list[str]]:
    """Find the volumes of a deleted guest. The Proxmox task `upid` deleted the guest some time ago.

    Return three lists. The first contains the volumes that the log of the Proxmox task names, if they still exist or if
    their storage cannot be read. The second contains all other volumes of the VMID on the node of the Proxmox task:
    they may be from a snapshot of the deleted guest or, on a shared storage, from another cluster. The third contains a
    text about each storage that cannot be read.
    """
    node = upid.split(":")[1]
    logged_volumes = set(volumes_left_in_log(cluster.log(upid)))
    listed_volumes, unreadable_storages = list_volumes(
        cluster, node, storages_of(logged_volumes) | cluster.guest_disk_storages(node), vmid
    )
    return (
        sorted(
            (logged_volumes & listed_volumes) | _volumes_on_unreadable_storages(unreadable_storages, logged_volumes)
        ),
        sorted(listed_volumes - logged_volumes),
        unreadable_storages,
    )


def _volumes_on_unreadable_storages(unreadable_storages: Iterable[str], volumes: Iterable[str]) -> set[str]:
    """Return the volumes on unreadable storages. `unreadable_storages` has texts of the form `STORAGE: reason`."""
    storages = {problem.partition(":")[0] for problem in unreadable_storages}
    return {volume for volume in volumes if volume.partition(":")[0] in storages}


def storages_of(volumes: Iterable[str]) -> set[str]:
    """Return the storages of these volumes."""
    return {volume.partition(":")[0] for volume in volumes}


def storages_of_new_guest(vm: dict[str, Any], template: dict[str, Any]) -> set[str]:
    """Return the storages of a new guest's volumes: the template's storages, and the storages in the request `vm`."""
    config = template.get("config", {})
    drives = [str(value).partition(",")[0] for key, value in config.items() if VOLUME_KEY.match(key)]
    template_storages = {drive.partition(":")[0] for drive in drives if _VOLUME.match(drive)}
    requested_storages = [vm.get("storage"), *(disk.get("storage") for disk in vm.get("disks") or [])]
    return template_storages | {str(storage) for storage in requested_storages if storage}


def old_volumes_problem(cluster: Cluster, node: str, vmid: int, storages: Iterable[str]) -> str:
    """Return an error text if one of these storages has volumes of a deleted guest with this VMID; '' if not.

    Proxmox would treat the volumes as those of a new guest, because their names contain its VMID. Raises one of
    REQUEST_ERRORS if a storage cannot be read. A storage on which the login has no privilege is not checked, because
    Proxmox refuses to create a volume there.
    """
    old_volumes = []
    for storage in sorted(storages):
        try:
            old_volumes += sorted(cluster.volume_ids(node, storage, vmid))
        except REQUEST_ERRORS as exc:
            if getattr(exc, "status_code", 0) != 403:
                raise
    return f"VM_ID_TAKEN: VMID {vmid} has volumes of a deleted guest: {', '.join(old_volumes)}" if old_volumes else ""


def volumes_left_warning(vmid: int, volumes: Iterable[str], volumes_of_unknown_owner: Sequence[str] = ()) -> str:
    """Return the warning about the volumes that still exist after a guest's deletion.

    `volumes_of_unknown_owner` is the part of `volumes` that may belong to another guest.
    """
    names = ", ".join(volume for volume in volumes if volume not in volumes_of_unknown_owner)
    texts = []
    if names:
        texts.append(f"Proxmox could not remove these volumes: {names} (remove them by hand: pvesm free VOLUME)")
    if volumes_of_unknown_owner:
        text = f"these volumes have its VMID in their names: {', '.join(volumes_of_unknown_owner)}"
        texts.append(f"{text} (remove them by hand, unless a guest of another cluster uses them)")
    end = f"No new guest gets VMID {vmid} while one of these volumes exists"
    return f"{VOLUMES_LEFT}: VM {vmid} is deleted, but {', and '.join(texts)}. {end}"
