"""Finds out which volumes of deleted VMs still exist."""

from __future__ import annotations

from dataclasses import replace

from executor.drift.facts import VolumesLeft
from executor.errors import JobError
from executor.proxmox.client import ProxmoxReader


def existing_volumes(proxmox: ProxmoxReader, left: VolumesLeft) -> VolumesLeft:
    """Return those volumes of a deleted VM that still exist. A volume is gone only if its storage can be read."""
    return replace(left, volumes=tuple(volume for volume in left.volumes if _may_exist(proxmox, left, volume)))


def _may_exist(proxmox: ProxmoxReader, left: VolumesLeft, volume: str) -> bool:
    try:
        listed = proxmox.volumes(left.mapping.node, volume.partition(":")[0], vmid=left.mapping.vmid)
    except JobError:
        return True
    return volume in listed
