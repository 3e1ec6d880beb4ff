"""Reads from Proxmox the facts on which the choice of a VM's node depends. `placer.py` then chooses the node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from executor.errors import JobError
from executor.placement import templates
from executor.placement.decide import MIB, NO_TEMPLATE, Placement, PlacementConstraints
from executor.placement.snapshot import ClusterCache, ClusterSnapshot, MayWait
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.rows import NodeRow, VmRow
from executor.settings.offered import template_not_configured_error
from executor.settings.settings import Settings
from executor.shared.error_codes import ErrorCode

#: Matches the bridge in the configuration of a VM's network device, for example in `virtio=BC:24:…,bridge=vmbr0`.
BRIDGE = re.compile(r"(?:^|,)bridge=([^,]+)")


@dataclass(frozen=True, kw_only=True)
class PlacementRequest:
    """The facts about a new VM on which the choice of the VM's node depends."""

    vmid: int
    image: str = ""  #: the name of the image whose template is cloned; '' if nothing is cloned
    volume: str = ""  #: if nothing is cloned, the volume of the ISO image or container template; '' if there is none
    memory_mib: int
    cores: int
    bridge: str
    node: str = ""  #: the only node in PROXMOX_NODES; '' if the placer chooses the node


@dataclass(frozen=True, kw_only=True)
class ChoiceFacts:
    """The facts for one choice of a node.

    The facts do not contain the memory and cores of VMs that are being created or migrated, because Proxmox does not
    show this memory and these cores yet. The placer adds both.
    """

    snapshot: ClusterSnapshot
    placement_or_constraints: Placement | PlacementConstraints  #: the only possible placement, or what the VM needs
    #: the bridges of each online node (an empty set if they cannot be read); {} if the choice does not need them
    bridges_by_node: Mapping[str, frozenset[str]] = field(default_factory=dict)
    migrating_vm: VmRow | None = None  #: the VM that migrates; None for a new VM, and if Proxmox does not list the VM


@dataclass(frozen=True)
class ChoiceReader:
    """Reads the facts for choices of nodes. Several threads may use the same object.

    While a method waits for Proxmox, it repeatedly calls the function in its argument `may_wait`. If this function
    returns False, the method raises JobError. If the function raises JobError, the method does not catch it. If Proxmox
    does not answer, the method raises JobError.
    """

    proxmox: ProxmoxReader
    settings: Settings
    cluster_cache: ClusterCache

    def read_facts_for_new_vm(self, request: PlacementRequest, may_wait: MayWait) -> ChoiceFacts:
        """Read the facts for the choice of the node of a new VM."""
        snapshot = self.cluster_cache.snapshot(may_wait)
        placement_or_constraints = self._placement_or_constraints(request, snapshot, may_wait)
        if isinstance(placement_or_constraints, Placement):
            return ChoiceFacts(snapshot=snapshot, placement_or_constraints=placement_or_constraints)
        bridges_by_node = self._bridges_by_node(snapshot, may_wait) if placement_or_constraints.bridge else {}
        return ChoiceFacts(
            snapshot=snapshot, placement_or_constraints=placement_or_constraints, bridges_by_node=bridges_by_node
        )

    def _placement_or_constraints(
        self, request: PlacementRequest, snapshot: ClusterSnapshot, may_wait: MayWait
    ) -> Placement | PlacementConstraints:
        """Return the placement of a new VM if only one node is possible; otherwise, what the VM needs from its node."""
        if not request.image:
            return self._placement_or_constraints_without_template(request, snapshot, may_wait)
        template_rows = self._template_rows(request.image, snapshot, may_wait)
        existing_vm = snapshot.find_vm(request.vmid)
        if existing_vm is not None and not existing_vm.is_template:  # the create job may run again after a crash
            return _placement_on(existing_vm.node, "the VM exists there already", template_rows[0].vmid)
        image_templates = [self.cluster_cache.template(row, may_wait) for row in template_rows]
        # A linked clone is on the storages of its template, so only a full clone needs PROXMOX_STORAGE.
        storage = self.settings.proxmox_storage if self.settings.proxmox_full_clones else ""
        # For each template, by its VMID: the nodes on which a clone of the template can be created, and whether the
        # list of these nodes is known to be complete.
        nodes_for_clone_by_vmid = {
            template.vmid: templates.nodes_for_clone(template, snapshot.storages, storage)
            for template in image_templates
        }
        if request.node:
            template_vmid = templates.choose_template_vmid(
                request.node, request.image, image_templates, nodes_for_clone_by_vmid
            )
            return _placement_on(request.node, "set by PROXMOX_NODES", template_vmid)
        return PlacementConstraints(
            memory_mib=request.memory_mib,
            cores=request.cores,
            storage=storage,
            bridge=request.bridge,
            template_vmid_by_candidate_node=templates.template_vmid_by_node(image_templates, nodes_for_clone_by_vmid),
            preferred_node=image_templates[0].node,
        )

    def _placement_or_constraints_without_template(
        self, request: PlacementRequest, snapshot: ClusterSnapshot, may_wait: MayWait
    ) -> Placement | PlacementConstraints:
        """Return what `_placement_or_constraints` returns, for a new VM that is not cloned from a template."""
        existing_vm = snapshot.find_vm(request.vmid)
        if existing_vm is not None:
            return _placement_on(existing_vm.node, "the VM exists there already")
        if request.node:
            return _placement_on(request.node, "set by PROXMOX_NODES")
        # `may_hold_volume` returns False only if the node is known to have no access to the volume.
        nodes_with_volume = [
            node.name
            for node in snapshot.nodes
            if self.cluster_cache.may_hold_volume(node.name, request.volume, snapshot.storages, may_wait)
        ]
        return PlacementConstraints(
            memory_mib=request.memory_mib,
            cores=request.cores,
            storage=self.settings.proxmox_storage or "",
            bridge=request.bridge,
            template_vmid_by_candidate_node=dict.fromkeys(nodes_with_volume, NO_TEMPLATE),
            # `source_text` is the end of an error text about a node: "has no access to <source_text>".
            source_text=request.volume or "the volume for the VM",
        )

    def read_facts_for_growth(
        self, vmid: int, memory_mib: int, cores: int, may_wait: MayWait
    ) -> tuple[VmRow, PlacementConstraints, ClusterSnapshot] | None:
        """Return the VM's row, what the VM needs from its node in order to grow, and the snapshot.

        Returns None if the VM does not grow, or Proxmox does not list it. `memory_mib` and `cores` are the new size. In
        the constraints, memory or cores that do not grow are 0.
        """
        snapshot = self.cluster_cache.snapshot(may_wait)
        if snapshot.find_vm(vmid) is None:  # the snapshot may be older than the VM
            snapshot = self.cluster_cache.snapshot(may_wait, max_age_s=0)
        row = snapshot.find_vm(vmid)
        if row is None:
            return None
        # Proxmox's list lacks the size of a VM whose node sends no statistics.
        row = self.cluster_cache.add_missing_facts(row, may_wait)
        constraints = PlacementConstraints(
            memory_mib=memory_mib if memory_mib * MIB > row.max_memory_bytes else 0,
            cores=cores if cores > row.cores else 0,
            template_vmid_by_candidate_node={},  # not used: the VM stays on its node
        )
        return (row, constraints, snapshot) if constraints.memory_mib or constraints.cores else None

    def read_facts_for_migration(self, vmid: int, node: str, may_wait: MayWait) -> ChoiceFacts:
        """Read the facts for the choice of the target node of a migration. `node` is the node in the VM's mapping."""
        # The snapshot must be new, because an operator may have put a node into maintenance seconds ago.
        snapshot = self.cluster_cache.snapshot(may_wait, max_age_s=0)
        row = snapshot.find_vm(vmid)
        if row is None:
            return ChoiceFacts(
                snapshot=snapshot, placement_or_constraints=_placement_on(node, "Proxmox does not list the VM")
            )
        return self._read_facts_for_migrating_vm(row, snapshot, may_wait)

    def _read_facts_for_migrating_vm(self, row: VmRow, snapshot: ClusterSnapshot, may_wait: MayWait) -> ChoiceFacts:
        """Read the facts for the choice among the nodes that have access to the VM's disks and bridges."""
        config = self.proxmox.vm_config(row.node, row.vmid, kind=row.kind)
        # The cloud-init drive is left out, because Proxmox creates it again on the target node.
        vm_facts = templates.vm_facts_without_cloud_init_drive(row, config)
        # `nodes_for_clone` returns the nodes that have access to a template's disks. Here it gets the VM instead of a
        # template, and returns the nodes that have access to the VM's disks.
        nodes_with_disks = templates.nodes_for_clone(vm_facts, snapshot.storages).nodes
        needed_bridges = _bridges_of_vm(config)
        usable_nodes = [
            node
            for node in nodes_with_disks
            if self._may_have_bridges(node, needed_bridges, may_wait) or node == row.node
        ]
        constraints = PlacementConstraints(
            memory_mib=row.max_memory_bytes // MIB,
            cores=row.cores,
            template_vmid_by_candidate_node=dict.fromkeys(usable_nodes, NO_TEMPLATE),
            preferred_node=row.node,
            source_text="the disks or the networks of the VM",
        )
        return ChoiceFacts(snapshot=snapshot, placement_or_constraints=constraints, migrating_vm=row)

    def _may_have_bridges(self, node: str, needed_bridges: set[str], may_wait: MayWait) -> bool:
        """Return False only if the node is known to lack one of `needed_bridges`."""
        bridges = self.cluster_cache.bridges(node, may_wait)  # empty if they cannot be read
        return not bridges or needed_bridges <= bridges

    def _template_rows(self, image: str, snapshot: ClusterSnapshot, may_wait: MayWait) -> list[VmRow]:
        """Return the templates of an image.

        If Proxmox's list lacks the name of a VM that may be a template of the image, the VM's configuration is read.
        If there is no template, raises JobError NOT_FOUND, or PVE_PERMISSION if the token may not see all VMs.
        """
        rows: list[VmRow] = list(snapshot.vms)
        vmid_by_image, are_unconfigured_templates_allowed = (
            self.settings.proxmox_templates,
            self.settings.proxmox_any_template,
        )
        if not are_unconfigured_templates_allowed and image not in vmid_by_image:
            raise template_not_configured_error(image, vmid_by_image)
        try:
            if incomplete_rows := templates.incomplete_rows_of_possible_templates(image, vmid_by_image, rows):
                rows_by_vmid = {
                    row.vmid: self.cluster_cache.add_missing_facts(row, may_wait) for row in incomplete_rows
                }
                rows = [rows_by_vmid.get(row.vmid, row) for row in rows]
            return templates.find_templates(
                image, vmid_by_image, rows, are_unconfigured_templates_allowed=are_unconfigured_templates_allowed
            )
        except JobError as error:
            if error.code is ErrorCode.NOT_FOUND and not self.proxmox.may_see_all_vms():
                text = "the token lacks VM.Audit on /vms, and does not see all templates: {}"
                # `detail` is for tenants, `operator_detail` for the log and `smith jobs show`
                detail, operator_detail = text.format(error.detail), text.format(error.operator_detail)
                raise JobError(ErrorCode.PVE_PERMISSION, detail, operator_detail) from None
            raise

    def _bridges_by_node(self, snapshot: ClusterSnapshot, may_wait: MayWait) -> dict[str, frozenset[str]]:
        """Return the bridges of each allowed node that is online."""
        online_nodes = [row.name for row in self.allowed_nodes(snapshot) if row.is_online]
        return {node: self.cluster_cache.bridges(node, may_wait) for node in online_nodes}

    def allowed_nodes(self, snapshot: ClusterSnapshot) -> list[NodeRow]:
        """Return the nodes in PROXMOX_NODES, or all nodes if PROXMOX_NODES is empty."""
        allowed_names = self.settings.proxmox_nodes
        return [row for row in snapshot.nodes if not allowed_names or row.name in allowed_names]


def _bridges_of_vm(config: Mapping[str, Any]) -> set[str]:
    """Return the bridges of the network devices in a VM's configuration.

    The keys of the devices are `net0`, `net1` and so on.
    """
    network_devices = [str(value) for key, value in config.items() if key.startswith("net")]
    return {bridge for device in network_devices for bridge in BRIDGE.findall(device)}


def _placement_on(node: str, reason: str, template_vmid: int = NO_TEMPLATE) -> Placement:
    return Placement(node=node, template_vmid=template_vmid, reason=f"{node}: {reason}")
