"""Chooses a VMID for a new VM: a VMID that no current mapping and no guest uses, and that is not in quarantine.

A mapping is current if its state is not deleted. After a mapping was deleted, its VMID is in quarantine for some time
(see `pick_vmid`).
"""

from __future__ import annotations

import random
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from executor.database.mapping_conditions import HAS_VOLUMES_LEFT, IS_CURRENT, IS_DELETED
from executor.database.tables.mappings import Mapping
from executor.database.times import utc_now
from executor.errors import JobError
from executor.shared.error_codes import ErrorCode

#: How many random VMIDs `pick_vmid` tries before it searches the range from its start.
MAX_RANDOM_TRIES = 64
#: The name of a cluster, and the lowest and the highest VMID for new VMs on this cluster.
ClusterVmidRange = tuple[str, int, int]


def pick_vmid(session: Session, vmid_range: ClusterVmidRange, *, quarantine_s: float, used_vmids: set[int]) -> int:
    """Return a VMID of the range that has no current mapping, is not in quarantine, and is not in `used_vmids`.

    `used_vmids` are the VMIDs that guests in Proxmox use. The VMID of a deleted mapping is in quarantine for
    `quarantine_s` after the deletion, and as long as volumes of the deleted VM still exist. Proxmox identifies
    the VM of a volume by the VMID in the volume's name. So the volumes would belong to a new VM with this VMID. Raises
    JobError CAPACITY when no VMID of the range is available.
    """
    _cluster, lowest, highest = vmid_range
    excluded_vmids = used_vmids | unavailable_vmids(session, vmid_range, quarantine_s=quarantine_s)
    for _ in range(MAX_RANDOM_TRIES):
        vmid = random.randint(lowest, highest)  # noqa: S311 (not for security)
        if vmid not in excluded_vmids:
            return vmid
    for vmid in range(lowest, highest + 1):
        if vmid not in excluded_vmids:
            return vmid
    remedy = "set PROXMOX_VMID_MIN and PROXMOX_VMID_MAX to a larger range"
    operator_detail = f"no VMID is free between {lowest} and {highest}: {remedy}"
    raise JobError(ErrorCode.CAPACITY, "no VMID is free", operator_detail)


def unavailable_vmids(session: Session, vmid_range: ClusterVmidRange, *, quarantine_s: float) -> set[int]:
    """Return the VMIDs of the range that have a current mapping or are in quarantine (see `pick_vmid`)."""
    cluster, lowest, highest = vmid_range
    oldest_deletion_in_quarantine = utc_now() - timedelta(seconds=quarantine_s)
    vmids_in_range_query = select(Mapping.vmid).where(Mapping.cluster == cluster, Mapping.vmid.between(lowest, highest))
    vmids: set[int] = set()
    is_recently_deleted = IS_DELETED & (Mapping.deleted_at > oldest_deletion_in_quarantine)
    # Each condition has its own partial index. A single query with OR would read the whole table.
    for is_unavailable in (IS_CURRENT, is_recently_deleted, HAS_VOLUMES_LEFT):
        vmids |= set(session.scalars(vmids_in_range_query.where(is_unavailable)))
    return vmids
