"""Converts Proxmox's lists of VMs, nodes, storages and backups to typed rows.

Proxmox sends a number as a number, as text, or not at all, depending on the version, the guest and the node.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from executor.errors import JobError
from executor.settings.types import MIN_VMID
from executor.shared.error_codes import ErrorCode

MIB = 1024**2
#: The values of `VmRow.lock` while Proxmox clones or creates the VM.
_CREATION_LOCKS = ("clone", "create")
#: The memory that Proxmox gives a VM if the VM's configuration does not contain the memory.
DEFAULT_MEMORY_MIB = 512
#: Matches the separator between two tags.
_TAG_SEPARATORS = re.compile(r"[;,\s]+")


@dataclass(frozen=True)
class VmRow:
    """One VM or container in the cluster's list of resources.

    Only the VMID, node, kind, tags and lock are current. All other values come from the statistics that the VM's node
    sends, which are up to 10 s old. For a new VM, there are no statistics yet: these values are unknown and have
    their defaults.
    """

    vmid: int
    node: str
    name: str = ""
    status: str = ""  #: `running` or `stopped`, or `unknown` if the node is down
    is_template: bool = False
    kind: str = "qemu"  #: `qemu` for a VM, `lxc` for a container
    cpu_usage: float = 0.0  #: CPU usage as a share of all cores of the VM together, 0 to 1
    cores: int = 0
    memory_bytes: int = 0  #: the memory in use
    max_memory_bytes: int = 0
    disk_bytes: int = 0  #: the disk space in use; always 0 for a VM: Proxmox reports the disk usage of containers only
    max_disk_bytes: int = 0
    # The next five numbers start from 0 at each start of the VM.
    net_in_bytes: int = 0
    net_out_bytes: int = 0
    disk_read_bytes: int = 0
    disk_write_bytes: int = 0
    uptime_s: int = 0
    tags: tuple[str, ...] = ()
    lock: str = ""  #: the operation for which Proxmox has locked the VM, such as backup; '' if there is no lock
    #: False if name, status, is_template and all numbers are unknown. True if Proxmox sent them, or if `fill_in_vm_row`
    #: has set name, is_template, cores and max_memory_bytes. In the second case, the other values may be unknown.
    has_statistics: bool = True

    @property
    def is_being_created(self) -> bool:
        """True while Proxmox clones or creates the VM.

        Then `name` may be missing or wrong, because a clone gets its name only after its first drive is copied.
        """
        return self.lock in _CREATION_LOCKS


@dataclass(frozen=True)
class NodeRow:
    """One node of the cluster."""

    name: str
    is_online: bool  #: True if the cluster reaches the node
    cpu_usage: float = 0.0  #: CPU usage as a share of all cores of the node together, 0 to 1
    cores: int = 0
    memory_bytes: int = 0  #: the memory in use
    max_memory_bytes: int = 0
    #: False only if the node's status is `unknown`: the node is online but sends no statistics, so the state of its
    #: storages is unknown
    is_status_known: bool = True


@dataclass(frozen=True)
class StorageRow:
    """One storage on one node. A storage that several nodes use has one row for each node."""

    name: str
    node: str
    is_shared: bool = False  #: whether the nodes that use this storage see the same data
    is_available: bool = False
    content: frozenset[str] = frozenset()  #: the accepted kinds, such as `images` (VM disks), `rootdir` and `backup`
    free_bytes: int | None = None  #: None if the node sends no statistics of the storage

    @property
    def accepts_disks(self) -> bool:
        """True if the storage is configured to accept disks of VMs."""
        return "images" in self.content


@dataclass(frozen=True)
class StorageConfig:
    """A storage in the configuration of the cluster. A disabled storage has a StorageConfig, but no StorageRow."""

    name: str
    is_disabled: bool = False
    nodes: tuple[str, ...] = ()  #: the nodes that may use the storage; empty if all nodes may use it


@dataclass(frozen=True)
class ArchiveRow:
    """One archive (a backup of a guest) on a storage."""

    volume: str  #: Proxmox's id of the volume, such as `backups:backup/vzdump-qemu-100-2026_11_27-08_00_00.vma.zst`
    vmid: int  #: the VMID of the guest in the backup; 0 if Proxmox's answer contains no VMID
    notes: str = ""
    created_at_s: int = 0  #: Unix time


def vm_rows(data: Any) -> list[VmRow]:
    """Parse the answer to `GET /cluster/resources?type=vm`.

    Rows without a VMID or a node are left out, because every request for a VM needs both.
    """
    rows = (_vm_row(row) for row in as_objects(data) if row.get("type", "qemu") in ("qemu", "lxc"))
    return [row for row in rows if row.vmid >= MIN_VMID and row.node]


def _vm_row(row: dict[str, Any]) -> VmRow:
    return VmRow(
        vmid=as_int(row.get("vmid")),
        node=as_text(row.get("node")),
        name=as_text(row.get("name")),
        status=as_text(row.get("status")),
        is_template=bool(as_int(row.get("template"))),
        kind=as_text(row.get("type")) or "qemu",
        cpu_usage=as_float(row.get("cpu")),
        cores=as_int(row.get("maxcpu")),
        memory_bytes=as_int(row.get("mem")),
        max_memory_bytes=as_int(row.get("maxmem")),
        disk_bytes=as_int(row.get("disk")),
        max_disk_bytes=as_int(row.get("maxdisk")),
        net_in_bytes=as_int(row.get("netin")),
        net_out_bytes=as_int(row.get("netout")),
        disk_read_bytes=as_int(row.get("diskread")),
        disk_write_bytes=as_int(row.get("diskwrite")),
        uptime_s=as_int(row.get("uptime")),
        tags=tuple(tag for tag in _TAG_SEPARATORS.split(as_text(row.get("tags"))) if tag),
        lock=as_text(row.get("lock")),
        has_statistics="name" in row,
    )


def fill_in_vm_row(row: VmRow, config: dict[str, Any]) -> VmRow:
    """Return the row with `name` and `is_template` from the VM's configuration.

    The number of cores and the memory are also taken from the configuration if they are unknown.
    """
    return replace(
        row,
        name=as_text(config.get("name") or config.get("hostname")),
        is_template=is_template(config),
        cores=row.cores or max(as_int(config.get("cores")), 1) * max(as_int(config.get("sockets")), 1),
        max_memory_bytes=row.max_memory_bytes or (as_int(config.get("memory")) or DEFAULT_MEMORY_MIB) * MIB,
        has_statistics=True,  # name, cores and memory are now known
    )


def is_template(config: dict[str, Any]) -> bool:
    """Return whether `config` is the configuration of a template."""
    return bool(as_int(config.get("template")))


def node_rows(data: Any) -> list[NodeRow]:
    """Parse the answer to `GET /nodes`.

    The status of a node is `offline` if the cluster does not reach the node. The status is `unknown` if the cluster
    reaches the node, but the node's daemon `pvestatd` has sent no statistics for five minutes. In both cases, Proxmox
    sends no numbers for the node.
    """
    return [
        NodeRow(
            name=as_text(row.get("node")),
            is_online=row.get("status") != "offline",
            cpu_usage=as_float(row.get("cpu")),
            cores=as_int(row.get("maxcpu")),
            memory_bytes=as_int(row.get("mem")),
            max_memory_bytes=as_int(row.get("maxmem")),
            is_status_known=row.get("status") != "unknown",
        )
        for row in as_objects(data)
        if as_text(row.get("node"))
    ]


def storage_rows(data: Any) -> list[StorageRow]:
    """Parse the answer to `GET /cluster/resources?type=storage`."""
    return [
        StorageRow(
            name=as_text(row.get("storage")),
            node=as_text(row.get("node")),
            is_shared=bool(as_int(row.get("shared"))),
            is_available=row.get("status") == "available",
            content=frozenset(as_text(row.get("content")).split(",")),
            free_bytes=max(as_int(row["maxdisk"]) - as_int(row.get("disk")), 0) if row.get("maxdisk") else None,
        )
        for row in as_objects(data)
        if as_text(row.get("storage")) and as_text(row.get("node"))
    ]


def storage_configs(data: Any) -> dict[str, StorageConfig]:
    """Parse the answer to `GET /storage`. The keys of the result are the names of the storages."""
    configs = [
        StorageConfig(
            name=as_text(row.get("storage")),
            is_disabled=bool(as_int(row.get("disable"))),
            nodes=tuple(node for node in as_text(row.get("nodes")).split(",") if node),
        )
        for row in as_objects(data)
    ]
    return {config.name: config for config in configs}


def archive_rows(data: Any) -> list[ArchiveRow]:
    """Parse the answer to `GET /nodes/{node}/storage/{storage}/content?content=backup`."""
    return [
        ArchiveRow(
            volume=as_text(row.get("volid")),
            vmid=as_int(row.get("vmid")),
            notes=as_text(row.get("notes")),
            created_at_s=as_int(row.get("ctime")),
        )
        for row in as_objects(data)
        if as_text(row.get("volid"))
    ]


def assume_unknown_storages_available(storages: Sequence[StorageRow], nodes: Sequence[NodeRow]) -> list[StorageRow]:
    """Return the storages. A storage whose node is online but sends no statistics gets `is_available` True.

    The status of this storage is unknown, so `storage_rows` has set `is_available` to False. With False, the storage
    would not be used for new VMs.
    """
    nodes_without_statistics = {node.name for node in nodes if node.is_online and not node.is_status_known}
    return [
        replace(storage, is_available=storage.is_available or storage.node in nodes_without_statistics)
        for storage in storages
    ]


def as_objects(data: Any) -> list[dict[str, Any]]:
    """Return the JSON objects in a list, without items that are not objects. Null counts as an empty list.

    Raises JobError if the data is not a list.
    """
    if data is None:  # Proxmox sometimes sends null for an empty list
        return []
    if not isinstance(data, list):
        raise JobError(ErrorCode.PVE_API_ERROR, "Proxmox's answer is not a JSON list")
    return [row for row in data if isinstance(row, dict)]


def as_object(data: Any) -> dict[str, Any]:
    """Return the data if it is a JSON object. Raises JobError for any other data."""
    if not isinstance(data, dict):
        raise JobError(ErrorCode.PVE_API_ERROR, "Proxmox's answer is not a JSON object")
    return data


def as_float(value: Any) -> float:
    """Return the value as a finite float; 0.0 if it is not a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def as_int(value: Any) -> int:
    """Return the value as an int; 0 if it is not a number."""
    # `int` is tried first, because a float is inexact above 2**53, and counters of bytes exceed this number.
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return int(as_float(value))


def as_text(value: Any) -> str:
    """Return the value as text; '' for null."""
    return "" if value is None else str(value)
