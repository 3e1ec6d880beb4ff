# SPDX-License-Identifier: Apache-2.0
"""Reads the disks of a guest from its configuration, for action plugins and the executor. All functions are pure."""

from __future__ import annotations

import re
from typing import Any

GIB = 1024**3
#: The bytes in each unit that Proxmox uses for the size of a drive.
BYTES_PER_UNIT = {"": 1, "K": 1024, "M": 1024**2, "G": GIB, "T": 1024 * GIB}
#: Match the configuration keys of a container's volumes, and of a VM's disks, CD-ROMs and cloud-init drive.
CONTAINER_VOLUME_KEY = re.compile(r"rootfs\Z|mp\d+\Z")
VM_DISK_KEY = re.compile(r"(?:scsi|virtio|sata|ide)\d+\Z")
#: Matches the end of the volume id of a cloud-init drive.
CLOUD_INIT_VOLUME = re.compile(r"[:/](?:vm-\d+-)?cloudinit(?:\.(?:raw|qcow2|vmdk))?\Z")
#: If neither the key `boot` nor `bootdisk` names a disk, Proxmox boots from the first disk in this order of buses.
BOOT_BUSES = ("scsi", "virtio", "sata", "ide")


def boot_disk(config: dict[str, Any]) -> str:
    """Return the key of the boot disk; '' if there is none. CD-ROMs and the cloud-init drive do not count as disks."""
    disks = [key for key in config if VM_DISK_KEY.match(key) and not is_cdrom_or_cloud_init(str(config[key]))]
    boot_devices = [*re.split(r"[;,=]", str(config.get("boot", ""))), str(config.get("bootdisk", ""))]
    first_disk = next((key for key in boot_devices if key in disks), None)
    return first_disk or min(disks, key=lambda key: (BOOT_BUSES.index(key.rstrip("0123456789")), key), default="")


def disks_of(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the storage and the size of each disk of a VM, by its key; not of CD-ROMs and the cloud-init drive."""
    drives = {
        key: str(value)
        for key, value in config.items()
        if VM_DISK_KEY.match(key) and not is_cdrom_or_cloud_init(str(value))
    }
    return {key: {"storage": drive.partition(":")[0], "bytes": size_of(drive)} for key, drive in drives.items()}


def is_cdrom_or_cloud_init(drive: str) -> bool:
    """Return True for a CD-ROM or a cloud-init drive."""
    volume, *options = drive.split(",")
    return "media=cdrom" in options or volume in ("none", "cdrom") or is_cloud_init(drive)


def is_cloud_init(drive: str) -> bool:
    """Return True for a cloud-init drive."""
    return CLOUD_INIT_VOLUME.search(drive.partition(",")[0]) is not None


def size_of(drive: str) -> int:
    """Return the size in bytes of a drive; 0 if its value in the configuration has no size."""
    found = re.search(r"(?:^|,)size=(\d+(?:\.\d+)?)([KMGT]?)", drive)
    return int(float(found.group(1)) * BYTES_PER_UNIT[found.group(2)]) if found else 0
