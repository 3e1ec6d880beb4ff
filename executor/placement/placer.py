"""Chooses the node for each create and each migration.

The memory and cores of a create or migration in progress count as used on the chosen node, although Proxmox does not
show them yet. Otherwise all creates of a burst would be placed on the node that had the best score when the burst
began.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from executor.errors import ErrorCode, JobError
from executor.log import get_logger
from executor.placement import templates
from executor.placement.decide import (
    MIB,
    NodeFacts,
    Placement,
    PlacementConstraints,
    Rules,
    decide,
    decide_move,
)
from executor.placement.snapshot import ClusterCache, ClusterSnapshot, node_facts
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.rows import NodeRow, VmRow
from executor.settings.settings import Settings

log = get_logger(__name__)

#: Matches the bridge in the value of a network device in a VM's configuration.
BRIDGE = re.compile(r"(?:^|,)bridge=([^,]+)")


@dataclass(frozen=True, kw_only=True)
class PlacementRequest:
    """The facts about a create on which its placement depends."""

    vmid: int
    image: str = ""  #: the name of the image whose template is cloned; '' if nothing is cloned
    volume: str = ""  #: if nothing is cloned: ISO image or container template; '' for empty disks
    memory_mib: int
    cores: int
    bridge: str
    node: str = ""  #: the node, if the operator or the mapping names it; '' if the placer chooses


@dataclass(kw_only=True)
class _Allocation:
    """The memory and cores of a create or migration, counted until Proxmox's list of VMs shows them."""

    node: str
    memory_bytes: int
    cores: int
    ended_at: float | None = None  #: when the create or migration ended, by the placer's clock


@dataclass
class Placer:
    """Chooses nodes. An agent has one object of this class, which all threads use."""

    proxmox: ProxmoxReader
    settings: Settings
    clock: Callable[[], float] = time.monotonic
    _cluster: ClusterCache = field(init=False)
    _allocations: dict[int, _Allocation] = field(default_factory=dict)  #: by VMID
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._cluster = ClusterCache(proxmox=self.proxmox, clock=self.clock)

    @contextmanager
    def allocate(self, request: PlacementRequest) -> Iterator[Placement]:
        """Choose the node for a new VM, and count the VM's memory and cores as used there until the block ends.

        Raises JobError when no node fits.
        """
        with self._lock:
            placement = self._place(request)
            placement = replace(placement, clone_target=self._clone_target(placement.node))
            self._add_allocation(request.vmid, placement.node, request.memory_mib * MIB, request.cores)
        log.info("vm_placed", node=placement.node, template=placement.template_vmid, reason=placement.reason)
        with self._end_allocation_after(request.vmid):
            yield placement

    @contextmanager
    def allocate_move(self, vmid: int, node: str) -> Iterator[Placement]:
        """Choose the node for a migration, and count the VM's memory and cores as used there until the block ends.

        `node` is the node in the VM's mapping, which is chosen if Proxmox does not list the VM. Raises JobError when no
        node fits.
        """
        with self._lock:
            self._cluster.invalidate()  # the operator may have put a node into maintenance seconds ago
            row = self._snapshot().find_vm(vmid)
            unlisted = Placement(node=node, template_vmid=0, reason=f"{node}: Proxmox does not list the VM")
            placement = unlisted if row is None else self._move(row)
            self._add_allocation(vmid, placement.node, row.max_memory_bytes if row else 0, row.cores if row else 0)
        log.info("vm_placed", node=placement.node, reason=placement.reason)
        with self._end_allocation_after(vmid):
            yield placement

    # --- allocations ----------------------------------------------------------------------------------------------

    def _add_allocation(self, vmid: int, node: str, memory_bytes: int, cores: int) -> None:
        self._allocations[vmid] = _Allocation(node=node, memory_bytes=memory_bytes, cores=cores)

    @contextmanager
    def _end_allocation_after(self, vmid: int) -> Iterator[None]:
        """Mark the allocation as ended when the block ends. `_snapshot` removes it later."""
        try:
            yield
        finally:
            with self._lock:
                self._allocations[vmid].ended_at = self.clock()

    def _snapshot(self) -> ClusterSnapshot:
        """Return Proxmox's lists, and remove the allocations that ended before the lists were read.

        If the create of such an allocation succeeded, the list of VMs contains the VM.
        """
        snapshot = self._cluster.snapshot()
        for vmid, allocation in list(self._allocations.items()):
            if allocation.ended_at is not None and allocation.ended_at < snapshot.read_at:
                del self._allocations[vmid]
        return snapshot

    # --- decisions ------------------------------------------------------------------------------------------------

    def _place(self, request: PlacementRequest) -> Placement:
        snapshot = self._snapshot()
        if not request.image:
            return self._place_without_template(request, snapshot)
        rows = self._templates(request.image, snapshot)
        existing = next((vm for vm in snapshot.vms if vm.vmid == request.vmid and not vm.is_template), None)
        if existing is not None:
            return _placed_on(existing.node, "the VM exists there already", rows[0].vmid)
        images = [self._cluster.template(row) for row in rows]
        storage = self.settings.proxmox_storage if self.settings.proxmox_full_clones else ""
        nodes_of = {image.vmid: templates.clone_nodes(image, snapshot.storages, storage) for image in images}
        if request.node:
            vmid = templates.template_for_node(request.node, request.image, images, nodes_of)
            return _placed_on(request.node, "set by PROXMOX_NODES", vmid)
        constraints = PlacementConstraints(
            memory_mib=request.memory_mib,
            cores=request.cores,
            storage=storage,
            bridge=request.bridge,
            templates=templates.template_by_node(images, nodes_of),
            preferred_node=images[0].node,
        )
        return decide(constraints, self._nodes(snapshot, constraints), self._rules())

    def _place_without_template(self, request: PlacementRequest, snapshot: ClusterSnapshot) -> Placement:
        if existing := snapshot.find_vm(request.vmid):
            return _placed_on(existing.node, "the VM exists there already")
        if request.node:
            return _placed_on(request.node, "set by PROXMOX_NODES")
        storages = snapshot.storages
        usable = [
            row.name for row in snapshot.nodes if self._cluster.may_hold_volume(row.name, request.volume, storages)
        ]
        constraints = PlacementConstraints(
            memory_mib=request.memory_mib,
            cores=request.cores,
            storage=self.settings.proxmox_storage or "",
            bridge=request.bridge,
            templates=dict.fromkeys(usable, 0),
            source=request.volume or "its volume",
        )
        return decide(constraints, self._nodes(snapshot, constraints), self._rules())

    def _move(self, row: VmRow) -> Placement:
        """Choose the node for a migration among the nodes that can reach the VM's disks and bridges."""
        snapshot = self._snapshot()
        config = self.proxmox.vm_config(row.node, row.vmid, kind=row.kind)
        reachable = templates.clone_nodes(templates.without_cloud_init(row, config), snapshot.storages).nodes
        bridges = {name for key, text in config.items() if key.startswith("net") for name in BRIDGE.findall(str(text))}
        # An empty set of bridges means that the token may not read them. Such a node is not excluded.
        known = {name: self._cluster.bridges(name) for name in reachable}
        usable = [name for name in reachable if not known[name] or bridges <= known[name] or name == row.node]
        constraints = PlacementConstraints(
            memory_mib=row.max_memory_bytes // MIB,
            cores=row.cores,
            templates=dict.fromkeys(usable, 0),
            preferred_node=row.node,
            source="its disks or its network",
        )
        nodes = self._nodes(snapshot, constraints, excluded={row.vmid})
        return decide_move(row.node, constraints, nodes, self._rules())

    def _templates(self, image: str, snapshot: ClusterSnapshot) -> list[VmRow]:
        try:
            return templates.candidates(image, self.settings.proxmox_templates, snapshot.vms)
        except JobError as error:
            if error.code is ErrorCode.NOT_FOUND and not self.proxmox.may_see_all_vms():
                text = f"the token lacks VM.Audit on /vms, so {error.detail}"
                raise JobError(ErrorCode.PVE_PERMISSION, text) from None
            raise

    def _clone_target(self, node: str) -> str:
        """Return the name of the clone target for clones to this node: a shared storage, or `<storage>@<node>`."""
        name = self.settings.proxmox_storage or ""
        rows = [row for row in self._snapshot().storages if row.name == name and row.node == node]
        return name if any(row.is_shared for row in rows) else f"{name or 'the template'}@{node}"

    def _rules(self) -> Rules:
        return Rules(
            nodes=self.settings.proxmox_nodes,
            memory_overcommit=self.settings.smith_memory_overcommit,
            cpu_overcommit=self.settings.smith_cpu_overcommit,
        )

    # --- facts ----------------------------------------------------------------------------------------------------

    def _nodes(
        self, snapshot: ClusterSnapshot, constraints: PlacementConstraints, excluded: Collection[int] = ()
    ) -> list[NodeFacts]:
        """Return the facts of the nodes in PROXMOX_NODES. The guests whose VMID is in `excluded` are not counted."""
        allowed = self.settings.proxmox_nodes
        rows = [node for node in snapshot.nodes if not allowed or node.name in allowed]
        return [self._node(node, snapshot, constraints, excluded) for node in rows]

    def _node(
        self, row: NodeRow, snapshot: ClusterSnapshot, constraints: PlacementConstraints, excluded: Collection[int]
    ) -> NodeFacts:
        # A guest with an allocation is counted by its allocation, not by its entry in Proxmox's list.
        facts = node_facts(row, snapshot, {*self._allocations, *excluded})
        counted = [each for vmid, each in self._allocations.items() if each.node == row.name and vmid not in excluded]
        return replace(
            facts,
            bridges=self._cluster.bridges(row.name) if row.is_online and constraints.bridge else frozenset(),
            allocated_memory_bytes=facts.allocated_memory_bytes + sum(each.memory_bytes for each in counted),
            allocated_cores=facts.allocated_cores + sum(each.cores for each in counted),
            creates_in_progress=sum(each.ended_at is None for each in counted),
        )


def _placed_on(node: str, why: str, template_vmid: int = 0) -> Placement:
    return Placement(node=node, template_vmid=template_vmid, reason=f"{node}: {why}")
