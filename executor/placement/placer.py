"""Chooses the node for each new VM and for each migration.

While a VM is being created or migrated, its memory and cores count as used on the chosen node, although Proxmox does
not show them yet. Otherwise, many create jobs at the same time would all get the same node.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from executor.errors import JobError
from executor.log import get_logger
from executor.placement import templates
from executor.placement.decide import (
    MIB,
    NO_TEMPLATE,
    NodeFacts,
    Placement,
    PlacementConstraints,
    PlacementRules,
    decide,
    decide_migration,
)
from executor.placement.snapshot import ClusterCache, ClusterSnapshot, node_facts
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.rows import NodeRow, VmRow
from executor.settings.settings import Settings
from executor.shared.error_codes import ErrorCode

log = get_logger(__name__)

#: Matches the bridge in the configuration of a VM's network device, for example in `virtio=BC:24:…,bridge=vmbr0`.
BRIDGE = re.compile(r"(?:^|,)bridge=([^,]+)")


@dataclass(frozen=True, kw_only=True)
class PlacementRequest:
    """The facts about a new VM that the choice of its node depends on."""

    vmid: int
    image: str = ""  #: the name of the image whose template is cloned; '' if nothing is cloned
    volume: str = ""  #: if nothing is cloned, the volume of the ISO image or container template; '' if there is none
    memory_mib: int
    cores: int
    bridge: str
    node: str = ""  #: the node, if PROXMOX_NODES has only one; '' if the placer chooses the node


@dataclass(kw_only=True)
class _Allocation:
    """The memory and cores of a new or migrating VM. They are counted until Proxmox's list of VMs shows them."""

    node: str
    memory_bytes: int
    cores: int
    ended_at: float | None = None  #: when the create or migration ended (a time of the placer's `clock`)


@dataclass
class Placer:
    """Chooses nodes. All threads of an agent use the same object of this class."""

    proxmox: ProxmoxReader
    settings: Settings
    clock: Callable[[], float] = time.monotonic
    _cluster: ClusterCache = field(init=False)
    _allocations: dict[int, _Allocation] = field(default_factory=dict)  #: the keys are VMIDs
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._cluster = ClusterCache(proxmox=self.proxmox, clock=self.clock)

    @contextmanager
    def allocate(self, request: PlacementRequest) -> Iterator[Placement]:
        """Choose the node for a new VM. Its memory and cores count as used on the node until the `with` block ends.

        Raises JobError when no node fits.
        """
        with self._lock:
            placement = self._place(request)
            placement = replace(placement, clone_target=self._clone_target(placement.node))
            self._add_allocation(request.vmid, placement.node, request.memory_mib * MIB, request.cores)
        log.info("vm_placed", node=placement.node, template_vmid=placement.template_vmid, reason=placement.reason)
        with self._end_allocation_on_exit(request.vmid):
            yield placement

    @contextmanager
    def allocate_migration(self, vmid: int, node: str) -> Iterator[Placement]:
        """Choose the target node of a migration. The VM counts as a guest of that node until the `with` block ends.

        `node` is the node in the VM's mapping. It is chosen if Proxmox does not list the VM. Raises JobError when no
        node fits.
        """
        with self._lock:
            self._cluster.invalidate()  # the operator may have put a node into maintenance seconds ago
            row = self._snapshot().find_vm(vmid)
            if row is None:
                placement = _placement_on(node, "Proxmox does not list the VM")
                self._add_allocation(vmid, placement.node, memory_bytes=0, cores=0)
            else:
                placement = self._place_migration(row)
                self._add_allocation(vmid, placement.node, row.max_memory_bytes, row.cores)
        log.info("vm_placed", node=placement.node, reason=placement.reason)
        with self._end_allocation_on_exit(vmid):
            yield placement

    # --- allocations ----------------------------------------------------------------------------------------------

    def _add_allocation(self, vmid: int, node: str, memory_bytes: int, cores: int) -> None:
        self._allocations[vmid] = _Allocation(node=node, memory_bytes=memory_bytes, cores=cores)

    @contextmanager
    def _end_allocation_on_exit(self, vmid: int) -> Iterator[None]:
        """Mark the allocation of a VM as ended when the `with` block ends. `_snapshot` removes the allocation later."""
        try:
            yield
        finally:
            with self._lock:
                self._allocations[vmid].ended_at = self.clock()

    def _snapshot(self) -> ClusterSnapshot:
        """Return Proxmox's lists, and remove the allocations that ended before the lists were read.

        These allocations are not needed: if the create or migration succeeded, the lists show the VM on its new node.
        """
        snapshot = self._cluster.snapshot()
        for vmid, allocation in list(self._allocations.items()):
            if allocation.ended_at is not None and allocation.ended_at < snapshot.read_at:
                del self._allocations[vmid]
        return snapshot

    # --- decisions ------------------------------------------------------------------------------------------------

    def _place(self, request: PlacementRequest) -> Placement:
        """Choose the node for a new VM."""
        snapshot = self._snapshot()
        if not request.image:
            return self._place_without_template(request, snapshot)
        template_rows = self._template_rows(request.image, snapshot)
        existing_vm = snapshot.find_vm(request.vmid)
        if existing_vm is not None and not existing_vm.is_template:
            return _placement_on(existing_vm.node, "the VM exists there already", template_rows[0].vmid)
        image_templates = [self._cluster.template(row) for row in template_rows]
        # A linked clone is on the storages of its template, so only a full clone needs PROXMOX_STORAGE.
        storage = self.settings.proxmox_storage if self.settings.proxmox_full_clones else ""
        nodes_for_clone_by_vmid = {
            template.vmid: templates.nodes_for_clone(template, snapshot.storages, storage)
            for template in image_templates
        }
        if request.node:
            template_vmid = templates.template_vmid_for_node(
                request.node, request.image, image_templates, nodes_for_clone_by_vmid
            )
            return _placement_on(request.node, "set by PROXMOX_NODES", template_vmid)
        constraints = PlacementConstraints(
            memory_mib=request.memory_mib,
            cores=request.cores,
            storage=storage,
            bridge=request.bridge,
            template_vmid_by_node=templates.template_vmid_by_node(image_templates, nodes_for_clone_by_vmid),
            preferred_node=image_templates[0].node,
        )
        return decide(constraints, self._nodes(snapshot, constraints), self._rules())

    def _place_without_template(self, request: PlacementRequest, snapshot: ClusterSnapshot) -> Placement:
        """Choose the node for a new VM that is not cloned from a template."""
        existing_guest = snapshot.find_vm(request.vmid)
        if existing_guest is not None:
            return _placement_on(existing_guest.node, "the VM exists there already")
        if request.node:
            return _placement_on(request.node, "set by PROXMOX_NODES")
        nodes_with_volume = [
            node.name
            for node in snapshot.nodes
            if self._cluster.may_hold_volume(node.name, request.volume, snapshot.storages)
        ]
        constraints = PlacementConstraints(
            memory_mib=request.memory_mib,
            cores=request.cores,
            storage=self.settings.proxmox_storage or "",
            bridge=request.bridge,
            template_vmid_by_node=dict.fromkeys(nodes_with_volume, NO_TEMPLATE),
            source_text=request.volume or "its volume",
        )
        return decide(constraints, self._nodes(snapshot, constraints), self._rules())

    def _place_migration(self, row: VmRow) -> Placement:
        """Choose the node for a migration among the nodes that have access to the VM's disks and bridges."""
        snapshot = self._snapshot()
        config = self.proxmox.vm_config(row.node, row.vmid, kind=row.kind)
        nodes_with_disks = templates.nodes_for_clone(
            templates.facts_without_cloud_init(row, config), snapshot.storages
        ).nodes
        needed_bridges = _bridges_of_vm(config)
        usable_nodes = [
            node for node in nodes_with_disks if self._may_have_bridges(node, needed_bridges) or node == row.node
        ]
        constraints = PlacementConstraints(
            memory_mib=row.max_memory_bytes // MIB,
            cores=row.cores,
            template_vmid_by_node=dict.fromkeys(usable_nodes, NO_TEMPLATE),
            preferred_node=row.node,
            source_text="its disks or its network",
        )
        nodes = self._nodes(snapshot, constraints, excluded_vmids={row.vmid})
        return decide_migration(row.node, constraints, nodes, self._rules())

    def _may_have_bridges(self, node: str, needed_bridges: set[str]) -> bool:
        """Return whether a node has these bridges, or may have them because the token may not read its bridges."""
        bridges = self._cluster.bridges(node)
        return not bridges or needed_bridges <= bridges

    def _template_rows(self, image: str, snapshot: ClusterSnapshot) -> list[VmRow]:
        """Return the templates of an image.

        If there are none, raises JobError NOT_FOUND, or PVE_PERMISSION if the token may not see all VMs.
        """
        try:
            return templates.find_templates(image, self.settings.proxmox_templates, snapshot.vms)
        except JobError as error:
            if error.code is ErrorCode.NOT_FOUND and not self.proxmox.may_see_all_vms():
                text = f"the token lacks VM.Audit on /vms, so {error.detail}"
                raise JobError(ErrorCode.PVE_PERMISSION, text) from None
            raise

    def _clone_target(self, node: str) -> str:
        """Return the name of the clone target for clones to this node: a shared storage, or `<storage>@<node>`.

        If PROXMOX_STORAGE is empty, the name is `the template@<node>`.
        """
        storage = self.settings.proxmox_storage or ""
        rows = [row for row in self._snapshot().storages if row.name == storage and row.node == node]
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

    def _nodes(
        self, snapshot: ClusterSnapshot, constraints: PlacementConstraints, excluded_vmids: Collection[int] = ()
    ) -> list[NodeFacts]:
        """Return the facts about the nodes in PROXMOX_NODES, or about all nodes if PROXMOX_NODES is empty.

        The guests whose VMID is in `excluded_vmids` are not counted.
        """
        allowed_names = self.settings.proxmox_nodes
        rows = [row for row in snapshot.nodes if not allowed_names or row.name in allowed_names]
        return [self._node(row, snapshot, constraints, excluded_vmids) for row in rows]

    def _node(
        self,
        row: NodeRow,
        snapshot: ClusterSnapshot,
        constraints: PlacementConstraints,
        excluded_vmids: Collection[int],
    ) -> NodeFacts:
        # For a guest with an allocation, the allocation is counted, not the guest's entry in Proxmox's list.
        facts = node_facts(row, snapshot, {*self._allocations, *excluded_vmids})
        allocations = [
            allocation
            for vmid, allocation in self._allocations.items()
            if allocation.node == row.name and vmid not in excluded_vmids
        ]
        should_read_bridges = row.is_online and bool(constraints.bridge)
        return replace(
            facts,
            bridges=self._cluster.bridges(row.name) if should_read_bridges else frozenset(),
            allocated_memory_bytes=facts.allocated_memory_bytes + sum(item.memory_bytes for item in allocations),
            allocated_cores=facts.allocated_cores + sum(item.cores for item in allocations),
            jobs_in_progress=sum(item.ended_at is None for item in allocations),
        )


def _bridges_of_vm(config: Mapping[str, Any]) -> set[str]:
    """Return the bridges of the network devices in a VM's configuration.

    The keys of the devices are `net0`, `net1` and so on.
    """
    network_devices = [str(value) for key, value in config.items() if key.startswith("net")]
    return {bridge for device in network_devices for bridge in BRIDGE.findall(device)}


def _placement_on(node: str, reason: str, template_vmid: int = NO_TEMPLATE) -> Placement:
    return Placement(node=node, template_vmid=template_vmid, reason=f"{node}: {reason}")
