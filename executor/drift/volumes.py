"""Finds out which volumes of deleted VMs still exist.

A `VolumesLeft` contains the mapping of one deleted VM, and the volumes of this VM that Proxmox could not remove.
"""

from __future__ import annotations

from dataclasses import replace

from executor.drift.facts import MappingFacts, VolumesLeft
from executor.errors import JobError
from executor.proxmox.client import ProxmoxReader


def volumes_that_may_exist(proxmox: ProxmoxReader, volumes_left: VolumesLeft) -> VolumesLeft:
    """Return `volumes_left` without the volumes that Proxmox no longer lists on their storage.

    A volume is kept if Proxmox's list for its storage cannot be read.
    """
    mapping, volumes = volumes_left.mapping, volumes_left.volumes
    remaining_volumes = tuple(volume for volume in volumes if _may_exist(proxmox, mapping, volume))
    return replace(volumes_left, volumes=remaining_volumes)


def _may_exist(proxmox: ProxmoxReader, mapping: MappingFacts, volume: str) -> bool:
    try:
        listed_volumes = proxmox.volumes(mapping.node, volume.partition(":")[0], vmid=mapping.vmid)
    except JobError:  # the request to Proxmox has failed
        return True
    return volume in listed_volumes
