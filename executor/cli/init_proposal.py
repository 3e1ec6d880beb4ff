"""Reads the nodes, storages, bridges and templates in Proxmox, and proposes which of them the agent may use.

Only `read_cluster` calls Proxmox; the other functions are pure. Each proposed bridge or VNet (virtual network of
Proxmox's SDN) exists on every online node. The default network of new VMs is vmbr0, or without vmbr0 the first bridge
or VNet by name. As additional networks, only VNets are proposed, because an additional bridge may lead to the
management network.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from executor.placement.templates import Template, parse_template, why_template_with_marker_cannot_be_cloned
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.rows import StorageRow, as_text, assume_unknown_storages_available
from executor.proxmox.template_needs import host_cd_drives, root_only_devices
from executor.shared.marker import marker_values_in
from executor.shared.sdn_zones import LOCAL_ZONE

DEFAULT_POOL = "agent-smith"
#: Matches a name that can be used in PROXMOX_TEMPLATES (a list of NAME=VMID), and that needs no quotes in the settings
#: file.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class FoundTemplate:
    """A VM template in Proxmox."""

    template: Template  #: the template's VMID, name, node, tags and storages, and whether it has a cloud-init drive
    #: Why services cannot use the template; '' if they can.
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The nodes, storages, bridges, VNets and VM templates that exist in Proxmox."""

    nodes: tuple[str, ...]  #: the online nodes
    storages: tuple[StorageRow, ...]
    bridges_by_node: Mapping[str, frozenset[str]]
    zone_by_vnet: Mapping[str, str] = field(default_factory=dict)
    templates: tuple[FoundTemplate, ...] = ()

    @property
    def bridges_on_every_node(self) -> list[str]:
        """The bridges and VNets that every online node has."""
        bridge_sets = list(self.bridges_by_node.values())
        return sorted(frozenset.intersection(*bridge_sets)) if bridge_sets else []

    @property
    def disk_storages(self) -> list[str]:
        """The storages for disks that are available on every online node."""
        nodes_by_storage: dict[str, set[str]] = {}
        for row in self.storages:
            if row.accepts_disks and row.is_available:
                nodes_by_storage.setdefault(row.name, set()).add(row.node)
        return sorted(name for name, nodes in nodes_by_storage.items() if nodes >= set(self.nodes))

    def zone_of(self, bridge: str) -> str:
        """Return the SDN zone of a VNet or bridge. A bridge that is not a VNet belongs to LOCAL_ZONE."""
        return self.zone_by_vnet.get(bridge, LOCAL_ZONE)


def read_cluster(reader: ProxmoxReader) -> Cluster:
    """Read the nodes, storages, bridges, VNets and VM templates in Proxmox. Raises JobError."""
    nodes = reader.nodes()
    online_nodes = tuple(sorted(node.name for node in nodes if node.is_online))
    # Proxmox's list lacks the name of a VM if the VM's node sends no statistics. Then the VM's configuration is read.
    rows = reader.add_missing_facts([row for row in reader.vms() if row.kind == "qemu"])
    templates = []
    for row in sorted((row for row in rows if row.is_template), key=lambda row: row.vmid):
        config = reader.vm_config(row.node, row.vmid)
        template = parse_template(row, config)
        templates.append(FoundTemplate(template=template, problem=why_template_unusable(template, config)))
    return Cluster(
        nodes=online_nodes,
        # The status of a storage is unknown if its node is online but sends no statistics.
        storages=tuple(assume_unknown_storages_available(reader.storages(), nodes)),
        bridges_by_node={node: reader.bridges(node) for node in online_nodes},
        zone_by_vnet=reader.vnet_zones(),
        templates=tuple(templates),
    )


def why_template_unusable(template: Template, config: Mapping[str, Any]) -> str:
    """Return why services cannot use the template; '' if they can.

    One reason is a marker, a line with a service's id in the description: each clone would have the marker, too.
    """
    if markers := marker_values_in(as_text(config.get("description"))):
        return why_template_with_marker_cannot_be_cloned(markers)
    if devices := root_only_devices(config):
        return f"only root@pam may clone a template with these devices: {', '.join(devices)}"
    if drives := host_cd_drives(config):
        remedy = " ".join(f"--{drive} none,media=cdrom" for drive in drives)
        return f"it uses the host's CD drive as {', '.join(drives)}: qm set {template.vmid} {remedy}"
    if not template.has_cloud_init:
        return f"it has no cloud-init drive: qm set {template.vmid} --ide2 <storage>:cloudinit"
    return "" if _PLAIN_NAME.fullmatch(template.name) else "its name has characters that PROXMOX_TEMPLATES cannot have"


def propose_settings(cluster: Cluster) -> dict[str, str]:
    """Return proposed settings with which the agent can create VMs from the usable templates.

    PROXMOX_STORAGE and PROXMOX_BRIDGE are the defaults for the disks and network devices of new VMs. PROXMOX_STORAGES
    and PROXMOX_BRIDGES are the other storages and bridges that a service may name.
    """
    usable_templates = [found.template for found in cluster.templates if not found.problem]
    vmid_by_name: dict[str, int] = {}
    for template in usable_templates:
        vmid_by_name.setdefault(template.name, template.vmid)
    storage = _most_used_storage(usable_templates, cluster.disk_storages)
    bridges = cluster.bridges_on_every_node
    main_bridge = next((name for name in ("vmbr0", *bridges) if name in bridges), "")
    vnets = [name for name in bridges if name in cluster.zone_by_vnet and name != main_bridge]
    proposal = {
        "PROXMOX_NODES": ",".join(cluster.nodes),
        "PROXMOX_STORAGE": storage,
        "PROXMOX_STORAGES": ",".join(name for name in cluster.disk_storages if name != storage),
        "PROXMOX_BRIDGE": main_bridge,
        "PROXMOX_BRIDGES": ",".join(vnets),
        "PROXMOX_TEMPLATES": ",".join(f"{name}={vmid}" for name, vmid in vmid_by_name.items()),
        "PROXMOX_POOL": DEFAULT_POOL,
    }
    return proposal


def _most_used_storage(templates: Sequence[Template], storages: Sequence[str]) -> str:
    """Return the storage that most templates use. If several storages are used equally often, return the first name."""
    use_counts = Counter(storage for template in templates for storage in template.storages if storage in storages)
    return min(storages, key=lambda name: (-use_counts[name], name), default="")
