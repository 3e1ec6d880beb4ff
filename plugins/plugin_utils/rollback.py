# SPDX-License-Identifier: Apache-2.0
"""Refuses a rollback that Proxmox would refuse: to an older snapshot, on a storage that rolls back to the newest only.

ZFS rolls a volume back to its newest snapshot only, and so does a storage with the option `snapshot-as-volume-chain`.
LVM-thin, Ceph and qcow2 files without this option roll back to each of their snapshots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .request_values import is_yes
from .shared.guest_disks import is_cdrom
from .volumes import VOLUME_KEY, volumes_in

if TYPE_CHECKING:
    from .cluster import Cluster

Facts = dict[str, Any]
#: The types of storages on ZFS: a pool of the node, and ZFS over iSCSI.
ZFS_TYPES = ("zfspool", "zfs")
#: The option of a storage whose snapshots are volumes, each of which needs the one before it.
CHAIN_OPTION = "snapshot-as-volume-chain"
#: Keys of volumes that Proxmox does not roll back.
KEYS_NOT_ROLLED_BACK = ("vmstate", "unused")


def rollback_problem(cluster: Cluster, facts: Facts, name: str) -> str:
    """Return a problem if Proxmox would refuse the rollback because newer snapshots have the same volume; '' if not.

    Two cases cannot be recognised and are not refused: newer snapshots that exist on the storage only, and two
    snapshots of the same second of which neither is an ancestor of the other.
    """
    node, vmid = facts["node"], facts["vmid"]
    rows = {str(row["name"]): row for row in cluster.guest(node, vmid).snapshot.get() if row.get("name") != "current"}
    newer = _newer_snapshots(rows, name) if name in rows else []
    storages = _newest_only_storages(cluster) if newer else set()
    if not storages:
        return ""
    volumes = {volume for volume in _volumes(cluster, facts, name) if volume.partition(":")[0] in storages}
    newer_of_same_volumes = [other for other in newer if volumes & _volumes(cluster, facts, other)]
    if not newer_of_same_volumes:
        return ""
    why = "the snapshot is not the newest, and the storage of a disk can roll back to the newest only"
    to_remove = ", ".join(newer_of_same_volumes)
    return f"VM_STATE: property snapshot: {why}; first remove {to_remove} ({', '.join(sorted(volumes))})"


def _newer_snapshots(rows: dict[str, dict[str, Any]], name: str) -> list[str]:
    """Return the names of the snapshots that are certainly newer, oldest first."""
    taken_at = {other: int(row.get("snaptime") or 0) for other, row in rows.items()}
    newer = [other for other in rows if taken_at[other] > taken_at[name] or name in _ancestors(rows, other)]
    return sorted(newer, key=lambda other: (taken_at[other], len(_ancestors(rows, other))))


def _ancestors(rows: dict[str, dict[str, Any]], name: str) -> set[str]:
    """Return the snapshots from which the guest's snapshot `name` was made, directly or not."""
    found: set[str] = set()
    parent = str(rows[name].get("parent") or "")
    while parent in rows and parent not in found:
        found.add(parent)
        parent = str(rows[parent].get("parent") or "")
    return found


def _newest_only_storages(cluster: Cluster) -> set[str]:
    """Return the storages that roll a volume back to its newest snapshot only."""
    rows = cluster.api.storage.get()
    return {str(row["storage"]) for row in rows if row.get("type") in ZFS_TYPES or is_yes(row.get(CHAIN_OPTION, 0))}


def _volumes(cluster: Cluster, facts: Facts, snapshot: str) -> set[str]:
    """Return the volumes that a snapshot of the guest contains and that a rollback to it changes."""
    config = cluster.guest(facts["node"], facts["vmid"]).snapshot(snapshot).config.get()
    drives = [(key, value) for key, value in config.items() if VOLUME_KEY.match(key) and not is_cdrom(str(value))]
    return volumes_in([drive for drive in drives if not drive[0].startswith(KEYS_NOT_ROLLED_BACK)], facts["vmid"])
