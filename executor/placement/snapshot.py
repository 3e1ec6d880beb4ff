"""Reads the facts about the cluster that placement needs, and caches lists for 5 s and details for a minute.

Lists are those of all nodes, guests and storages of the cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from executor.errors import ErrorCode, JobError
from executor.log import get_logger
from executor.placement import templates
from executor.placement.decide import NodeFacts
from executor.proxmox.client import TAG, ProxmoxReader
from executor.proxmox.rows import NodeRow, StorageRow, VmRow

log = get_logger(__name__)

#: How long Proxmox's lists are used before they are read again.
MAX_SNAPSHOT_AGE_S = 5.0
#: How long details are used before they are read again. Details are the bridges of a node, the volumes of a storage and
#: the configuration of a template, which change rarely.
MAX_DETAIL_AGE_S = 60.0
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ClusterSnapshot:
    """Proxmox's lists of nodes, guests and storages, read within a short time."""

    read_at: float  #: before the lists were read, by the clock of the cache
    nodes: Sequence[NodeRow]
    vms: Sequence[VmRow]
    storages: Sequence[StorageRow]
    in_maintenance: frozenset[str] = frozenset()  #: names of nodes

    def find_vm(self, vmid: int) -> VmRow | None:
        """Return the VM, container or template with this VMID, None if Proxmox does not list it."""
        return next((vm for vm in self.vms if vm.vmid == vmid), None)


@dataclass
class _CacheEntry:
    """A cached detail, and the time at which it was read."""

    value: Any
    read_at: float


@dataclass(kw_only=True)
class ClusterCache:
    """Reads facts from Proxmox and caches them.

    The class is not thread-safe: the placer calls its methods only while it holds a lock.
    """

    proxmox: ProxmoxReader
    clock: Callable[[], float] = time.monotonic
    _snapshot: ClusterSnapshot | None = None
    _details: dict[tuple[str, str], _CacheEntry] = field(default_factory=dict)  #: by kind and name of the detail

    def snapshot(self) -> ClusterSnapshot:
        """Return Proxmox's lists. They are read again when they are older than MAX_SNAPSHOT_AGE_S."""
        now = self.clock()
        if self._snapshot is None or now - self._snapshot.read_at > MAX_SNAPSHOT_AGE_S:
            self._snapshot = ClusterSnapshot(
                read_at=now,
                nodes=self.proxmox.nodes(),
                vms=self.proxmox.vms(),
                storages=_default_if_forbidden(self.proxmox.storages, []),
                in_maintenance=_default_if_forbidden(self.proxmox.nodes_in_maintenance, frozenset()),
            )
        return self._snapshot

    def invalidate(self) -> None:
        """Discard the lists, so that the next call of `snapshot` reads them."""
        self._snapshot = None

    def template(self, row: VmRow) -> templates.Template:
        """Return the facts of a template.

        If its configuration cannot be read, the result has only the facts in `row`, its entry in Proxmox's list.
        """

        def read() -> templates.Template:
            return templates.read(row, self.proxmox.vm_config(row.node, row.vmid))

        return self._detail("template", f"{row.vmid}@{row.node}", read, default=templates.read(row, {}))

    def bridges(self, node: str) -> frozenset[str]:
        """Return the bridges of a node, an empty set when they cannot be read."""
        nothing: frozenset[str] = frozenset()
        return self._detail("bridges", node, lambda: self.proxmox.bridges(node), default=nothing)

    def may_hold_volume(self, node: str, volume: str, storages: Sequence[StorageRow]) -> bool:
        """Return whether a volume (`<storage>:<content>/<file>`) exists on the node.

        Returns True also when the volume has no storage in its name, or when the storage cannot be read.
        """
        storage, _, path = volume.partition(":")
        rows = [row for row in storages if row.name == storage]
        if not storage or not rows:
            return True
        if not any(row.node == node and row.is_available for row in rows):
            return False
        content = path.partition("/")[0]
        volumes = self._detail(
            f"volumes {content}",
            f"{storage}@{node}",
            lambda: self.proxmox.volumes(node, storage, content),
            default=None,
        )
        return volumes is None or volume in volumes

    def _detail(self, kind: str, name: str, read: Callable[[], T], *, default: T) -> T:
        """Return a detail from the cache, else from `read`; return `default` when Proxmox refuses or fails."""
        entry = self._details.get((kind, name))
        if entry is None or self.clock() - entry.read_at > MAX_DETAIL_AGE_S:
            try:
                entry = self._details[kind, name] = _CacheEntry(read(), self.clock())
            except JobError as error:
                log.debug("placement_fact_missing", kind=kind, name=name, error_code=error.code)
                return default
        value: T = entry.value
        return value


def node_facts(row: NodeRow, snapshot: ClusterSnapshot, excluded: Collection[int]) -> NodeFacts:
    """Return the facts about a node from Proxmox's lists. Guests whose VMID is in `excluded` are not counted.

    Stopped guests are not counted either, unless they have the agent's tag: a job may start such a guest at any time.
    """
    guests = [vm for vm in snapshot.vms if vm.node == row.name and not vm.is_template and vm.vmid not in excluded]
    counted = [vm for vm in guests if vm.status != "stopped" or TAG in vm.tags]
    used_by_guests = sum(vm.memory_bytes for vm in snapshot.vms if vm.node == row.name)
    return NodeFacts(
        name=row.name,
        is_online=row.is_online,
        in_maintenance=row.name in snapshot.in_maintenance,
        cores=row.cores,
        memory_bytes=row.max_memory_bytes,
        own_memory_bytes=max(row.memory_bytes - used_by_guests, 0),
        allocated_memory_bytes=sum(vm.max_memory_bytes for vm in counted),
        allocated_cores=sum(vm.cores for vm in counted),
        cpu_share=row.cpu_share,
        storages=frozenset(each.name for each in snapshot.storages if each.node == row.name and each.is_available),
    )


def _default_if_forbidden(read: Callable[[], T], default: T) -> T:
    """Return the result of `read`, or `default` when the token lacks the privilege for this request."""
    try:
        return read()
    except JobError as error:
        if error.code is not ErrorCode.PVE_PERMISSION:
            raise
        return default
