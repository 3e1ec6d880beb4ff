"""Reads Proxmox's lists into rows: VMs, nodes, storages.

Proxmox's numbers come as numbers, as text, or not at all, depending on version, guest and node.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from executor.errors import ErrorCode, JobError
from executor.settings.types import MIN_VMID


@dataclass(frozen=True)
class VmRow:
    """One VM or container of the cluster's list, which Proxmox refreshes about every 10 s."""

    vmid: int
    node: str
    name: str = ""
    status: str = ""  #: running, stopped, or unknown when its node is down
    is_template: bool = False
    kind: str = "qemu"  #: or lxc
    cpu_share: float = 0.0  #: of all its cores together, 0 to 1
    cores: int = 0
    memory_bytes: int = 0
    max_memory_bytes: int = 0
    disk_bytes: int = 0  #: always 0 for qemu
    max_disk_bytes: int = 0
    net_in_bytes: int = 0  #: the counters start again with the VM: when `uptime_s` drops, so do they
    net_out_bytes: int = 0
    disk_read_bytes: int = 0
    disk_write_bytes: int = 0
    uptime_s: int = 0
    tags: tuple[str, ...] = ()
    lock: str = ""


@dataclass(frozen=True)
class NodeRow:
    """One node of the cluster."""

    name: str
    is_online: bool
    cpu_share: float = 0.0
    cores: int = 0
    memory_bytes: int = 0
    max_memory_bytes: int = 0


@dataclass(frozen=True)
class StorageRow:
    """One storage as one node has it; a storage of several nodes has a row for each."""

    name: str
    node: str
    is_shared: bool = False  #: the same data from every node that has it
    is_available: bool = False
    holds_disks: bool = False


def vm_rows(answer: Any) -> list[VmRow]:
    """Read `GET /cluster/resources?type=vm`. What has no VMID or no node is left out: nobody could ask for it."""
    rows = (_vm_row(row) for row in objects_in(answer) if row.get("type", "qemu") in ("qemu", "lxc"))
    return [row for row in rows if row.vmid >= MIN_VMID and row.node]


def _vm_row(row: dict[str, Any]) -> VmRow:
    return VmRow(
        vmid=whole_in(row.get("vmid")),
        node=text_in(row.get("node")),
        name=text_in(row.get("name")),
        status=text_in(row.get("status")),
        is_template=bool(whole_in(row.get("template"))),
        kind=text_in(row.get("type")) or "qemu",
        cpu_share=number_in(row.get("cpu")),
        cores=whole_in(row.get("maxcpu")),
        memory_bytes=whole_in(row.get("mem")),
        max_memory_bytes=whole_in(row.get("maxmem")),
        disk_bytes=whole_in(row.get("disk")),
        max_disk_bytes=whole_in(row.get("maxdisk")),
        net_in_bytes=whole_in(row.get("netin")),
        net_out_bytes=whole_in(row.get("netout")),
        disk_read_bytes=whole_in(row.get("diskread")),
        disk_write_bytes=whole_in(row.get("diskwrite")),
        uptime_s=whole_in(row.get("uptime")),
        tags=tuple(tag for tag in re.split(r"[;,\s]+", text_in(row.get("tags"))) if tag),
        lock=text_in(row.get("lock")),
    )


def node_rows(answer: Any) -> list[NodeRow]:
    """Read `GET /nodes`. Of a node that is down, Proxmox tells only the name and that it is."""
    return [
        NodeRow(
            name=text_in(row.get("node")),
            is_online=row.get("status") == "online",
            cpu_share=number_in(row.get("cpu")),
            cores=whole_in(row.get("maxcpu")),
            memory_bytes=whole_in(row.get("mem")),
            max_memory_bytes=whole_in(row.get("maxmem")),
        )
        for row in objects_in(answer)
        if text_in(row.get("node"))
    ]


def storage_rows(answer: Any) -> list[StorageRow]:
    """Read `GET /cluster/resources?type=storage`."""
    return [
        StorageRow(
            name=text_in(row.get("storage")),
            node=text_in(row.get("node")),
            is_shared=bool(whole_in(row.get("shared"))),
            is_available=row.get("status") == "available",
            holds_disks="images" in text_in(row.get("content")).split(","),
        )
        for row in objects_in(answer)
        if text_in(row.get("storage")) and text_in(row.get("node"))
    ]


def objects_in(answer: Any) -> list[dict[str, Any]]:
    """The objects of a list; an empty list is sometimes null."""
    if answer is None:
        return []
    if not isinstance(answer, list):
        raise JobError(ErrorCode.PVE_API_ERROR, "Proxmox's answer is not a list")
    return [row for row in answer if isinstance(row, dict)]


def object_in(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise JobError(ErrorCode.PVE_API_ERROR, "Proxmox's answer is not an object")
    return answer


def number_in(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def whole_in(value: Any) -> int:
    """An int, not by way of a float where it can be helped: counters grow beyond 2**53."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return int(number_in(value))


def text_in(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
