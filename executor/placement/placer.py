"""Chooses the node for each new VM and for each migration.

An allocation is the memory and cores of a VM that is being created, migrated or made larger. It counts as used on the
chosen node. When the job's run ends, the allocation is marked as ended. When Proxmox's list of VMs has then been read
again, the allocation is removed. Without allocations, many create jobs at the same time would all get the same node.
Agent processes that share a database count each other's allocations, too (`shared_allocations.py`).

Before the placer takes a lock, it reads from Proxmox the facts on which a choice depends, such as the lists of nodes,
guests and storages. So a request that Proxmox does not answer does not delay other placements. A thread that marks an
allocation as ended takes only the lock `Placer._lock`, which no thread holds while it waits for Proxmox or the
database. So a slow choice of a node does not delay that thread.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from executor.database.tables.allocations import Allocation as AllocationRow
from executor.log import get_logger
from executor.placement.choice import ChoiceFacts, ChoiceReader, PlacementRequest
from executor.placement.decide import (
    MIB,
    NodeFacts,
    Placement,
    PlacementRules,
    choose_migration_node,
    choose_node,
    require_capacity,
)
from executor.placement.shared_allocations import SharedAllocations
from executor.placement.snapshot import ClusterCache, ClusterSnapshot, MayWait, may_always_wait, node_facts
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.rows import NodeRow
from executor.settings.settings import Settings

log = get_logger(__name__)


@dataclass(kw_only=True)
class _Allocation:
    """The memory and cores of a new, migrating or growing VM. They count as used on `node`."""

    node: str
    memory_bytes: int
    cores: int
    ended_at: float | None = None  #: when the job's run ended (a time of the placer's `clock`); None until then


@dataclass
class Placer:
    """Chooses nodes. All threads of an agent use the same object of this class."""

    proxmox: ProxmoxReader
    settings: Settings
    clock: Callable[[], float] = time.monotonic
    shared_allocations: SharedAllocations | None = None  #: None on SQLite, where no other agent uses the database
    _reader: ChoiceReader = field(init=False)  #: reads the facts on which the choice of a node depends
    #: The allocations of this agent process. The keys are VMIDs.
    _allocations: dict[int, _Allocation] = field(default_factory=dict)
    #: The allocations of other agent processes. The keys are VMIDs.
    _allocations_of_other_agents: dict[int, _Allocation] = field(default_factory=dict)
    _newest_snapshot: ClusterSnapshot | None = None  #: Proxmox's newest lists of nodes, guests and storages
    #: Guards `_allocations`, `_allocations_of_other_agents` and `_newest_snapshot`. It is not held while Proxmox or the
    #: database is called.
    _lock: threading.Lock = field(default_factory=threading.Lock)
    #: Held while a thread chooses a node and stores its choice. It is not held while facts are read from Proxmox. A
    #: thread that marks an allocation as ended does not take it.
    _choice_lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._reader = ChoiceReader(self.proxmox, self.settings, ClusterCache(proxmox=self.proxmox, clock=self.clock))

    @contextmanager
    def allocate_for_new_vm(
        self, request: PlacementRequest, *, may_wait: MayWait = may_always_wait
    ) -> Iterator[Placement]:
        """Choose the node for a new VM. Add the VM's allocation; mark it as ended when the `with` block ends.

        While Proxmox does not answer, `may_wait` is called repeatedly. Raises JobError when no node fits, when facts
        cannot be read, and when `may_wait` returns False or raises JobError.
        """
        choice_facts = self._reader.read_facts_for_new_vm(request, may_wait)
        with self._exclusive_choice(choice_facts.snapshot, request.vmid) as add_allocation:
            placement = self._choose_placement(choice_facts)
            # The number of simultaneous clones is limited for each clone target: a shared storage or a node's storage.
            placement = replace(placement, clone_target=self._clone_target(placement.node, choice_facts.snapshot))
            add_allocation(placement.node, request.memory_mib * MIB, request.cores)
        log.info("vm_placed", node=placement.node, template_vmid=placement.template_vmid, reason=placement.reason)
        with self._end_allocation_on_exit(request.vmid):
            yield placement

    def preview(self, request: PlacementRequest) -> Placement:
        """Return the placement that `allocate_for_new_vm` would choose. Allocates nothing. Raises the same errors."""
        choice_facts = self._reader.read_facts_for_new_vm(request, may_always_wait)
        with self._lock:
            return self._choose_placement(choice_facts)

    @contextmanager
    def allocate_for_migration(
        self, vmid: int, mapped_node: str, *, may_wait: MayWait = may_always_wait
    ) -> Iterator[Placement]:
        """Choose the target node of a migration. Add the VM's allocation; mark it as ended when the `with` block ends.

        If Proxmox does not list the VM, it is unknown which nodes are possible. Then `mapped_node`, the node in the
        VM's mapping, is the target node. Raises the same errors as `allocate_for_new_vm`.
        """
        choice_facts = self._reader.read_facts_for_migration(vmid, mapped_node, may_wait)
        vm = choice_facts.migrating_vm
        with self._exclusive_choice(choice_facts.snapshot, vmid) as add_allocation:
            placement = self._choose_placement(choice_facts)
            memory_bytes, cores = (vm.max_memory_bytes, vm.cores) if vm else (0, 0)
            add_allocation(placement.node, memory_bytes, cores)
        log.info("vm_placed", node=placement.node, reason=placement.reason)
        with self._end_allocation_on_exit(vmid):
            yield placement

    @contextmanager
    def allocate_for_growth(
        self, vmid: int, memory_mib: int, cores: int, *, may_wait: MayWait = may_always_wait
    ) -> Iterator[None]:
        """Check that a VM can grow to this size on its node, and add the VM's allocation.

        The allocation is marked as ended when the `with` block ends. If the VM does not grow, or if Proxmox does not
        list it, nothing is checked or allocated. Raises the same errors as `allocate_for_new_vm`.
        """
        growth = self._reader.read_facts_for_growth(vmid, memory_mib, cores, may_wait)
        if growth is None:
            yield
            return
        vm, constraints, snapshot = growth  # `constraints`: what the VM needs from its node in order to grow
        with self._exclusive_choice(snapshot, vmid) as add_allocation:
            snapshot = self._update_snapshot_and_allocations(snapshot)
            for row in snapshot.nodes:
                if row.name == vm.node:
                    # frozenset(): network bridges do not matter here. {vmid}: the VM's present size is not counted.
                    require_capacity(
                        self._facts_of_node(row, snapshot, frozenset(), {vmid}), constraints, self._rules()
                    )
            memory_bytes = max(memory_mib * MIB, vm.max_memory_bytes)
            add_allocation(vm.node, memory_bytes, max(cores, vm.cores))
        with self._end_allocation_on_exit(vmid):
            yield

    # --- allocations ----------------------------------------------------------------------------------------------

    @contextmanager
    def _exclusive_choice(self, snapshot: ClusterSnapshot, vmid: int) -> Iterator[Callable[[str, int, int], None]]:
        """Yield a function that adds the VM's allocation (node, memory in bytes, cores).

        The `with` block holds `_choice_lock` and `_lock`. On PostgreSQL, no other agent chooses a node while the block
        runs, and the allocations of the other agents count, too. If another agent has an allocation of the same VM,
        that agent has lost the job, so its allocation does not count. Raises DatabaseError.
        """
        added_allocations: dict[int, _Allocation] = {}

        def add_allocation(node: str, memory_bytes: int, cores: int) -> None:
            added_allocations[vmid] = _Allocation(node=node, memory_bytes=memory_bytes, cores=cores)

        with self._choice_lock, contextlib.ExitStack() as stack:
            with self._lock:
                newest_snapshot = self._update_snapshot_and_allocations(snapshot)
                vmids_of_this_agent = list(self._allocations)
            shared_choice = None
            if self.shared_allocations is not None:
                shared_choice = stack.enter_context(
                    self.shared_allocations.begin_exclusive_choice(
                        vmids_of_this_agent=vmids_of_this_agent,
                        vm_list_age_s=self.clock() - newest_snapshot.read_at,
                        # Proxmox's list lacks the memory and cores of these VMs: their nodes send no statistics.
                        # So the VMs' allocations count even after the allocations have ended.
                        vmids_of_unknown_size=[vm.vmid for vm in newest_snapshot.vms if not vm.has_statistics],
                    )
                )
            with self._lock:
                if shared_choice is not None:
                    rows = [row for row in shared_choice.allocations_of_other_agents if row.vmid != vmid]
                    self._allocations_of_other_agents = {
                        row.vmid: _allocation_of_other_agent(row, self.clock()) for row in rows
                    }
                yield add_allocation
            for allocation in added_allocations.values():
                if shared_choice is not None:
                    shared_choice.store_allocation(vmid, allocation.node, allocation.memory_bytes, allocation.cores)
            stack.close()  # commits the transaction of `shared_choice`
            with self._lock:
                self._allocations |= added_allocations

    @contextmanager
    def _end_allocation_on_exit(self, vmid: int) -> Iterator[None]:
        """Mark the VM's allocation as ended when the `with` block ends.

        `_update_snapshot_and_allocations` removes the allocation later.
        """
        try:
            yield
        finally:
            with self._lock:
                self._allocations[vmid].ended_at = self.clock()
            if self.shared_allocations is not None:
                self.shared_allocations.end_allocation(vmid)

    def _update_snapshot_and_allocations(self, snapshot: ClusterSnapshot) -> ClusterSnapshot:
        """Return the newest snapshot. Remove the allocations that were marked as ended before this snapshot was read.

        The newest snapshot shows the node and the size (memory and cores) of a VM whose allocation has ended. If the
        snapshot lists a VM without its size, the VM's allocation is kept. The argument `snapshot` is ignored if a newer
        snapshot is known: a VM whose allocation has been removed may be missing in the older snapshot, and would not be
        counted. The caller holds `_lock`.
        """
        newest_snapshot = self._newest_snapshot
        if newest_snapshot is None or newest_snapshot.read_at <= snapshot.read_at:
            newest_snapshot = self._newest_snapshot = snapshot
        for vmid, allocation in list(self._allocations.items()):
            row = newest_snapshot.find_vm(vmid)
            is_size_missing = row is not None and not row.has_statistics
            has_ended_before_snapshot = (
                allocation.ended_at is not None and allocation.ended_at < newest_snapshot.read_at
            )
            if has_ended_before_snapshot and not is_size_missing:
                del self._allocations[vmid]
        return newest_snapshot

    # --- decisions ------------------------------------------------------------------------------------------------

    def _choose_placement(self, choice_facts: ChoiceFacts) -> Placement:
        """Choose the node. If only one node is possible, `choice_facts` already contains the Placement on this node.

        The caller holds `_lock`.
        """
        snapshot, vm = self._update_snapshot_and_allocations(choice_facts.snapshot), choice_facts.migrating_vm
        if isinstance(choice_facts.placement_or_constraints, Placement):
            return choice_facts.placement_or_constraints
        nodes = self._facts_of_nodes(snapshot, choice_facts.bridges_by_node, excluded_vmids={vm.vmid} if vm else ())
        if vm is None:
            return choose_node(choice_facts.placement_or_constraints, nodes, self._rules())
        return choose_migration_node(vm.node, choice_facts.placement_or_constraints, nodes, self._rules())

    def _clone_target(self, node: str, snapshot: ClusterSnapshot) -> str:
        """Return the clone target of a clone on this node: the name of a shared storage, or `<storage>@<node>`.

        The number of clones that run at the same time is limited for each clone target. If PROXMOX_STORAGE is empty, a
        clone is on the storages of its template, and the clone target is `the template@<node>`.
        """
        storage = self.settings.proxmox_storage or ""
        rows = [row for row in snapshot.storages if row.name == storage and row.node == node]
        if any(row.is_shared for row in rows):
            return storage
        return f"{storage or 'the template'}@{node}"

    def _rules(self) -> PlacementRules:
        return PlacementRules(
            nodes=self.settings.proxmox_nodes,
            memory_overcommit=self.settings.smith_memory_overcommit,
            cpu_overcommit=self.settings.smith_cpu_overcommit,
        )

    # --- facts ----------------------------------------------------------------------------------------------------

    def _facts_of_nodes(
        self,
        snapshot: ClusterSnapshot,
        bridges_by_node: Mapping[str, frozenset[str]],
        excluded_vmids: Collection[int] = (),
    ) -> list[NodeFacts]:
        """Return the facts about the nodes that PROXMOX_NODES allows.

        The guests whose VMID is in `excluded_vmids` are not counted. The caller holds `_lock`.
        """
        return [
            self._facts_of_node(row, snapshot, bridges_by_node.get(row.name, frozenset()), excluded_vmids)
            for row in self._reader.allowed_nodes(snapshot)
        ]

    def _facts_of_node(
        self,
        row: NodeRow,
        snapshot: ClusterSnapshot,
        bridges: frozenset[str],
        excluded_vmids: Collection[int],
    ) -> NodeFacts:
        # If a guest has an allocation, the allocation is counted instead of the guest's entry in Proxmox's list.
        all_allocations = self._allocations_of_other_agents | self._allocations
        facts = node_facts(row, snapshot, {*all_allocations, *excluded_vmids})
        allocations = [
            allocation
            for vmid, allocation in all_allocations.items()
            if allocation.node == row.name and vmid not in excluded_vmids
        ]
        return replace(
            facts,
            bridges=bridges,
            allocated_memory_bytes=facts.allocated_memory_bytes + sum(item.memory_bytes for item in allocations),
            allocated_cores=facts.allocated_cores + sum(item.cores for item in allocations),
            in_progress_job_count=sum(item.ended_at is None for item in allocations),
        )


def _allocation_of_other_agent(row: AllocationRow, now: float) -> _Allocation:
    """Return the allocation in the row of another agent.

    If the run has ended, `ended_at` is `now`, the present time of the placer's clock: the placer only checks whether
    `ended_at` of another agent's allocation is None.
    """
    ended_at = None if row.ended_at is None else now
    return _Allocation(node=row.node, memory_bytes=row.memory_bytes, cores=row.cores, ended_at=ended_at)
