"""Reads the facts about the Proxmox cluster that the choice of a node needs, and caches them.

Proxmox's lists of the nodes, guests and storages of the cluster are cached for 5 s. Details are cached for a minute.
The details are the bridges of a node, the volumes of a storage, the configuration of a template, and the name, memory
and cores of a VM if Proxmox's list lacks them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from executor.errors import JobError
from executor.log import get_logger
from executor.placement import templates
from executor.placement.decide import NodeFacts
from executor.placement.shared_reads import SharedReads
from executor.proxmox.client import SMITH_TAG, ProxmoxReader
from executor.proxmox.rows import NodeRow, StorageRow, VmRow, assume_unknown_storages_available
from executor.shared.error_codes import ErrorCode

log = get_logger(__name__)

#: How long the lists are used before they are read again.
MAX_SNAPSHOT_AGE_S = 5.0
#: How long a detail is used before it is read again. Details change rarely.
MAX_DETAIL_AGE_S = 60.0
T = TypeVar("T")
D = TypeVar("D")
#: A function that returns whether its caller may continue to wait. The function may raise JobError.
MayWait = Callable[[], bool]


def may_always_wait() -> bool:
    """Return True: the caller may wait as long as Proxmox needs."""
    return True


@dataclass(frozen=True, kw_only=True)
class ClusterSnapshot:
    """Proxmox's lists of nodes, guests and storages, which were read at about the same time."""

    read_at: float  #: the time just before the lists were read (a time of the cache's `clock`)
    nodes: Sequence[NodeRow]
    vms: Sequence[VmRow]  #: the VMs, containers and templates
    storages: Sequence[StorageRow]
    nodes_in_maintenance: frozenset[str] = frozenset()  #: the names of the nodes in maintenance

    def find_vm(self, vmid: int) -> VmRow | None:
        """Return the VM, container or template with this VMID, or None if Proxmox does not list it."""
        return next((vm for vm in self.vms if vm.vmid == vmid), None)


@dataclass(kw_only=True)
class ClusterCache:
    """Reads facts from Proxmox and caches them. All threads use the same object, and share each read and its error.

    While a method waits for Proxmox, it calls `may_wait` repeatedly. It raises JobError if `may_wait` returns False or
    raises JobError.
    """

    proxmox: ProxmoxReader
    clock: Callable[[], float] = time.monotonic
    _reads: SharedReads = field(init=False)

    def __post_init__(self) -> None:
        self._reads = SharedReads(clock=self.clock)

    def snapshot(self, may_wait: MayWait, *, max_age_s: float = MAX_SNAPSHOT_AGE_S) -> ClusterSnapshot:
        """Return Proxmox's lists, which are read again if they are older than `max_age_s`.

        Raises JobError if Proxmox does not answer.
        """
        earliest_read_start = self.clock() - max_age_s
        return self._reads.get("lists", self._read_lists, earliest_read_start=earliest_read_start, may_wait=may_wait)

    def _read_lists(self) -> ClusterSnapshot:
        read_at = self.clock()
        nodes = self.proxmox.nodes()
        storages: list[StorageRow] = _default_if_forbidden(self.proxmox.storages, [])
        return ClusterSnapshot(
            read_at=read_at,
            nodes=nodes,
            vms=self.proxmox.vms(),
            # If a node is online, but sends no statistics to the cluster, the status of its storages is unknown. Then
            # the storages count as available.
            storages=assume_unknown_storages_available(storages, nodes),
            nodes_in_maintenance=self.proxmox.nodes_in_maintenance(),
        )

    def add_missing_facts(self, row: VmRow, may_wait: MayWait) -> VmRow:
        """Return the row of a VM with its name, memory and cores. Raises JobError if they cannot be read.

        Proxmox's list lacks these facts while the VM's node sends no statistics to the cluster. Then they are read from
        the VM's configuration.
        """
        if row.has_statistics:
            return row
        earliest_read_start = self.clock() - MAX_DETAIL_AGE_S
        key = ("facts", f"{row.vmid}@{row.node}")
        return self._reads.get(
            key,
            lambda: self.proxmox.add_missing_facts([row])[0],
            earliest_read_start=earliest_read_start,
            may_wait=may_wait,
        )

    def template(self, row: VmRow, may_wait: MayWait) -> templates.Template:
        """Return the facts about a template. `row` is the template's entry in Proxmox's list.

        If the configuration of the template cannot be read, the result has only the facts in `row`.
        """

        def read_template() -> templates.Template:
            return templates.parse_template(row, self.proxmox.vm_config(row.node, row.vmid))

        facts_in_row = templates.parse_template(row, config={})
        return self._read_or_default(
            "template", f"{row.vmid}@{row.node}", read_template, may_wait, default=facts_in_row
        )

    def bridges(self, node: str, may_wait: MayWait) -> frozenset[str]:
        """Return the bridges of a node, or an empty set if they cannot be read."""
        return self._read_or_default(
            "bridges", node, lambda: self.proxmox.bridges(node), may_wait, default=frozenset[str]()
        )

    def may_hold_volume(self, node: str, volume: str, storages: Sequence[StorageRow], may_wait: MayWait) -> bool:
        """Return whether a volume (`<storage>:<content>/<file>`) exists, or may exist, on the node.

        It may exist if Proxmox does not list the storage, or if the storage cannot be read. The result is True if
        `volume` is empty, because the VM then needs no volume.
        """
        storage, _, content_and_file = volume.partition(":")
        storage_rows = [row for row in storages if row.name == storage]
        if not storage or not storage_rows:
            return True
        if not any(row.node == node and row.is_available for row in storage_rows):
            return False
        content = content_and_file.partition("/")[0]
        volumes = self._read_or_default(
            f"volumes {content}",
            f"{storage}@{node}",
            lambda: self.proxmox.volumes(node, storage, content),
            may_wait,
            default=None,
        )
        return volumes is None or volume in volumes

    def _read_or_default(self, kind: str, name: str, read: Callable[[], T], may_wait: MayWait, *, default: D) -> T | D:
        """Return a detail, which may be cached. If it cannot be read, return `default`.

        `kind` and `name` identify the detail, for example "bridges" and "pve1".
        """
        earliest_read_start = self.clock() - MAX_DETAIL_AGE_S

        def read_detail() -> T:
            try:
                return read()
            except JobError as error:
                log.debug("placement_fact_missing", detail_kind=kind, detail_name=name, error_code=error.code)
                raise _DetailMissing from error

        try:
            return self._reads.get(
                (kind, name), read_detail, earliest_read_start=earliest_read_start, may_wait=may_wait
            )
        except _DetailMissing:
            return default


class _DetailMissing(Exception):
    """Replaces the JobError of a failed read, so that `_read_or_default` does not catch a JobError of `may_wait`."""


def node_facts(row: NodeRow, snapshot: ClusterSnapshot, excluded_vmids: Collection[int]) -> NodeFacts:
    """Return the facts about a node from Proxmox's lists.

    The allocated memory and cores are those of all guests on the node, except templates, guests whose VMID is in
    `excluded_vmids`, and stopped guests without SMITH_TAG. The agent gives this tag to each of its VMs. A stopped guest
    with the tag counts, because a job may start it at any time.

    `excluded_vmids` contains the VMIDs of the guests for which a job has reserved memory and cores. The caller adds the
    reserved amounts to the result. If a VM is to be migrated, `excluded_vmids` contains its VMID too, because the new
    node is chosen as if the VM were on no node.
    """
    guests = [vm for vm in snapshot.vms if vm.node == row.name]
    # `memory_bytes` is the memory in use. `max_memory_bytes` is a node's whole memory, or a guest's configured memory.
    memory_used_by_guests = sum(vm.memory_bytes for vm in guests)
    counted_guests = [vm for vm in guests if _counts_as_allocated(vm) and vm.vmid not in excluded_vmids]
    return NodeFacts(
        name=row.name,
        is_online=row.is_online,
        is_in_maintenance=row.name in snapshot.nodes_in_maintenance,
        cores=row.cores,
        total_memory_bytes=row.max_memory_bytes,
        memory_bytes_used_by_host=max(row.memory_bytes - memory_used_by_guests, 0),
        allocated_memory_bytes=sum(vm.max_memory_bytes for vm in counted_guests),
        allocated_cores=sum(vm.cores for vm in counted_guests),
        cpu_usage=row.cpu_usage,
        storages=frozenset(
            storage.name for storage in snapshot.storages if storage.node == row.name and storage.is_available
        ),
    )


def _counts_as_allocated(vm: VmRow) -> bool:
    may_use_memory = vm.status != "stopped" or SMITH_TAG in vm.tags
    return may_use_memory and not vm.is_template


def _default_if_forbidden(read: Callable[[], T], default: T) -> T:
    """Return the result of `read`, or `default` if the token lacks the privilege to read it."""
    try:
        return read()
    except JobError as error:
        if error.code is not ErrorCode.PVE_PERMISSION:
            raise
        return default
