# SPDX-License-Identifier: Apache-2.0
"""Finds the newer snapshots because of which Proxmox would refuse a rollback to an older snapshot.

ZFS rolls a volume back only to its newest snapshot, and so does a storage with the option `snapshot-as-volume-chain`.
LVM-thin, Ceph, and qcow2 files without this option roll a volume back to any of its snapshots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .request_values import is_yes
from .shared.guest_disks import is_cdrom_or_cloud_init
from .volumes import VOLUME_KEY, volumes_in

if TYPE_CHECKING:
    from .cluster import Cluster

#: The facts of a guest, such as `node` and `vmid`. guest_facts.py lists all of them.
Facts = dict[str, Any]
#: The types of storages that use ZFS: a ZFS pool of the node, and ZFS over iSCSI.
ZFS_TYPES = ("zfspool", "zfs")
#: The option of a storage that stores each snapshot as a volume, with only the changes since the previous snapshot.
CHAIN_OPTION = "snapshot-as-volume-chain"
#: The beginnings of configuration keys whose volumes Proxmox does not roll back.
KEYS_NOT_ROLLED_BACK = ("vmstate", "unused")


def rollback_problem(cluster: Cluster, facts: Facts, name: str) -> str:
    """Return why newer snapshots make Proxmox refuse the rollback to the snapshot `name`; '' if they do not.

    A newer snapshot that is on the storage, but not in the guest's configuration, is not found. A snapshot that was
    taken in the same second as the snapshot `name` counts as newer only if the snapshot `name` is its ancestor.
    """
    node, vmid = facts["node"], facts["vmid"]
    rows = {str(row["name"]): row for row in cluster.guest(node, vmid).snapshot.get() if row.get("name") != "current"}
    newer_snapshots = _newer_snapshots(rows, name) if name in rows else []
    storages = _newest_only_storages(cluster) if newer_snapshots else set()
    if not storages:
        return ""
    volumes = {volume for volume in _volumes_of_snapshot(cluster, facts, name) if volume.partition(":")[0] in storages}
    blocking_snapshots = [
        snapshot for snapshot in newer_snapshots if volumes & _volumes_of_snapshot(cluster, facts, snapshot)
    ]
    if not blocking_snapshots:
        return ""
    reason = "the snapshot is not the newest, and the storage of a disk can roll back to the newest only"
    snapshots_to_remove = ", ".join(blocking_snapshots)
    remedy = f"first remove the newer snapshots {snapshots_to_remove}"
    return f"VM_STATE: property snapshot: {reason}; {remedy} (disks: {', '.join(sorted(volumes))})"


def _newer_snapshots(rows: dict[str, dict[str, Any]], name: str) -> list[str]:
    """Return the names of the snapshots that are certainly newer than the snapshot `name`, oldest first."""
    taken_at_by_name = {snapshot: int(row.get("snaptime") or 0) for snapshot, row in rows.items()}
    newer_snapshots = [
        snapshot
        for snapshot in rows
        if taken_at_by_name[snapshot] > taken_at_by_name[name] or name in _ancestors(rows, snapshot)
    ]
    return sorted(newer_snapshots, key=lambda snapshot: (taken_at_by_name[snapshot], len(_ancestors(rows, snapshot))))


def _ancestors(rows: dict[str, dict[str, Any]], name: str) -> set[str]:
    """Return the ancestors of the guest's snapshot `name`: its parent, the parent's parent, and so on."""
    ancestors: set[str] = set()
    parent = str(rows[name].get("parent") or "")
    while parent in rows and parent not in ancestors:
        ancestors.add(parent)
        parent = str(rows[parent].get("parent") or "")
    return ancestors


def _newest_only_storages(cluster: Cluster) -> set[str]:
    """Return the storages that roll a volume back to its newest snapshot only."""
    rows = cluster.api.storage.get()
    return {str(row["storage"]) for row in rows if row.get("type") in ZFS_TYPES or is_yes(row.get(CHAIN_OPTION, 0))}


def _volumes_of_snapshot(cluster: Cluster, facts: Facts, snapshot: str) -> set[str]:
    """Return the guest's volumes that a rollback to the snapshot changes.

    A volume belongs to the guest if the volume's name contains the guest's VMID.
    """
    config = cluster.guest(facts["node"], facts["vmid"]).snapshot(snapshot).config.get()
    drives = [
        (key, value)
        for key, value in config.items()
        if VOLUME_KEY.match(key) and not is_cdrom_or_cloud_init(str(value))
    ]
    return volumes_in([drive for drive in drives if not drive[0].startswith(KEYS_NOT_ROLLED_BACK)], facts["vmid"])
