"""Caches the answers of Proxmox that several checks of `smith doctor` need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from executor.placement import templates
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.rows import NodeRow, StorageConfig, StorageRow, VmRow, assume_unknown_storages_available
from executor.settings.settings import Settings
from executor.settings.types import ANY_VALUE
from executor.shared.sdn_zones import LOCAL_ZONE


@dataclass(frozen=True)
class ProxmoxContext:
    """The settings, the client that reads from Proxmox, and the answers of Proxmox.

    When a check first needs an answer, the client requests it. The answer is then kept for the other checks.
    """

    settings: Settings
    reader: ProxmoxReader

    @cached_property
    def major_version(self) -> int:
        """The major version of Proxmox VE, or 0 when it is unknown."""
        number = self.reader.version().partition(".")[0]
        return int(number) if number.isdecimal() else 0

    @cached_property
    def nodes(self) -> list[NodeRow]:
        """The nodes of the cluster."""
        return self.reader.nodes()

    @cached_property
    def allowed_nodes(self) -> list[NodeRow]:
        """The nodes on which the agent may place VMs."""
        allowed_names = self.settings.proxmox_nodes
        return [node for node in self.nodes if not allowed_names or node.name in allowed_names]

    @cached_property
    def allowed_bridges(self) -> list[str]:
        """The names of the bridges to which a VM may be attached. `*`, which allows every bridge, is left out."""
        names = [self.settings.proxmox_bridge, *self.settings.proxmox_bridges]
        return list(dict.fromkeys(name for name in names if name and name != ANY_VALUE))

    @cached_property
    def bridges_by_node(self) -> dict[str, frozenset[str]]:
        """The bridges and VNets that the token may see, by node. Contains only online nodes of `allowed_nodes`."""
        return {node.name: self.reader.bridges(node.name) for node in self.allowed_nodes if node.is_online}

    @cached_property
    def zone_by_bridge(self) -> dict[str, str]:
        """The SDN zone of each bridge in `allowed_bridges`.

        LOCAL_ZONE is Proxmox's zone `localnetwork`, which contains the ordinary bridges (bridges that are not VNets).
        The zone of a VNet is known even if the token may not use the VNet, because Proxmox's refusal names the zone.
        """
        return {bridge: self.reader.vnet_zone(bridge) or LOCAL_ZONE for bridge in self.allowed_bridges}

    @cached_property
    def template_configs(self) -> list[tuple[str, dict[str, Any]]]:
        """The image and the VM's configuration, for each VM in PROXMOX_TEMPLATES that the token may see.

        The image is the name by which services choose this VM as a template.
        """
        row_by_vmid = {row.vmid: row for row in self.guests}
        rows = [(image, row_by_vmid.get(vmid)) for image, vmid in self.settings.proxmox_templates.items()]
        return [(image, self.reader.vm_config(row.node, row.vmid, kind=row.kind)) for image, row in rows if row]

    @cached_property
    def guests(self) -> list[VmRow]:
        """The VMs, containers and templates that the token may see."""
        return self.reader.vms()

    @cached_property
    def disk_storages(self) -> frozenset[str]:
        """The names of the storages for disks: PROXMOX_STORAGE, or else the storages of the templates' disks."""
        if self.settings.proxmox_storage:
            return frozenset({self.settings.proxmox_storage})
        template_vmids = self.settings.proxmox_templates.values()
        storages: set[str] = set()
        for row in self.guests:
            if row.kind == "qemu" and row.vmid in template_vmids:
                storages |= templates.parse_template(row, self.reader.vm_config(row.node, row.vmid)).storages
        return frozenset(storages)

    @property
    def storages_selectable_by_services(self) -> list[str]:
        """The names of the storages in PROXMOX_STORAGES, which a service may choose."""
        return [name for name in self.settings.proxmox_storages if name != ANY_VALUE]

    def storage_row_by_node(self, storage: str) -> dict[str, StorageRow]:
        """Return the row of this storage on each node, by node name."""
        return {row.node: row for row in self.storages if row.name == storage}

    @property
    def storage_names(self) -> frozenset[str]:
        """The names of the storages that exist on at least one node and that the token may see."""
        return frozenset(row.name for row in self.storages)

    @cached_property
    def storage_configs(self) -> dict[str, StorageConfig]:
        """The configuration of each storage that the token may see, by storage name. It includes disabled storages."""
        return self.reader.storage_configs()

    @cached_property
    def storages(self) -> list[StorageRow]:
        """The storages that the token may see.

        If an online node sends no statistics, Proxmox does not know whether the node's storages are available. Then
        these storages count as available.
        """
        return assume_unknown_storages_available(self.reader.storages(), self.nodes)
