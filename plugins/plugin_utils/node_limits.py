# SPDX-License-Identifier: Apache-2.0
"""Refuses what a node or its cluster cannot give to a guest: CPUs, bridges, storages and CPU models.

Proxmox checks these only when it starts the guest, or after it has cloned the template. A fact is read only if a
request names a value that the guest does not have yet. A fact that the login may not read is no reason to refuse.

A problem is `CODE: property NAME: text (names and figures)`. Tenants read it without the part in parentheses, which is
for operators.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import container, disks, nics
from .allowed import ANY
from .client import FAILED_CALL, ResourceException, error_text
from .creation import is_blank
from .guest_facts import NIC_KEY
from .identity import kind_of
from .request_values import is_yes

if TYPE_CHECKING:
    from .cluster import Cluster

Facts = dict[str, Any]
#: The types of storages whose disks are files. A disk of the format qcow2 can have snapshots, a raw one cannot.
FILE_STORAGES = ("dir", "nfs", "cifs", "glusterfs")
#: The content that a storage needs for the disks of a guest, by its kind.
DISK_CONTENT = {"qemu": "images", "lxc": "rootdir"}
#: Proxmox's name for the SDN zone of all bridges of the nodes. A VNet belongs to another zone.
LOCAL_ZONE = "localnetwork"
#: The type of a VNet in Proxmox's list of bridges.
VNET = "vnet"
#: Proxmox's error text about a storage that does not exist.
NO_STORAGE = re.compile(r"storage '[^']*' does not exist")


def request_problem(cluster: Cluster, node: str, source: Facts, vm: dict[str, Any], *, is_new: bool) -> str:
    """Return why the node cannot give the guest what the request names; '' if it can, or if that is unknown.

    `source` contains the facts of the guest or, before it is created, of the template.
    """
    source = {"config": {}, "disks": {}, "cores": 0, "sockets": 0, **source}
    return next(filter(None, _problems(cluster, node, source, vm, is_new)), "")


def _problems(cluster: Cluster, node: str, source: Facts, vm: dict[str, Any], is_new: bool) -> Iterator[str]:
    if is_new and node not in {str(row.get("node")) for row in cluster.node_rows()}:
        yield f"NOT_FOUND: property node: it is no node of the cluster ({node})"
    if kind_of(vm) == "qemu":
        vcpus = _requested_vcpus(source, vm)
        if vcpus and (is_new or vcpus > source["cores"] * source["sockets"]):
            yield vcpus_problem(cluster, node, vcpus)
        yield _cpu_model_problem(cluster, node, source, vm, is_new)
    elif int(vm.get("cores") or 0) > (0 if is_new else source["cores"] or math.inf):
        yield _container_cores_problem(cluster, node, int(vm["cores"]))
    yield _bridge_problem(cluster, node, source, vm, is_new)
    for storage in sorted(_requested_storages(source, vm, is_new)):
        yield _storage_problem(cluster, node, storage, vm)


def vcpus_problem(cluster: Cluster, node: str, vcpus: int) -> str:
    """Return why Proxmox would not start a VM with this number of vCPUs: it is more than the node has CPUs."""
    cpus = _cpus_of(cluster, node)
    if not cpus or vcpus <= cpus:
        return ""
    return f"CAPACITY: property cores: a VM can have no more vCPUs than its node ({vcpus} requested, {node} has {cpus})"


def _container_cores_problem(cluster: Cluster, node: str, cores: int) -> str:
    """Return why a container would not get its cores: the node has fewer.

    Proxmox accepts such a number, so only a new or larger number is refused, not that of an existing container.
    """
    cpus = _cpus_of(cluster, node)
    if not cpus or cores <= cpus:
        return ""
    return (
        f"CAPACITY: property cores: a container gets no more than its node has ({cores} requested, {node} has {cpus})"
    )


def _cpus_of(cluster: Cluster, node: str) -> int:
    """Return the number of the node's CPUs; 0 if the login may not read it."""
    return next((int(row.get("maxcpu") or 0) for row in cluster.node_rows() if row.get("node") == node), 0)


def backup_problem(cluster: Cluster, node: str, storage: str) -> str:
    """Return why Proxmox would refuse to write an archive to the storage."""
    row = cluster.storage_rows(node).get(storage, {"content": "backup"})
    if "backup" in str(row.get("content", "backup")).split(","):
        return ""
    return f"INVALID_REQUEST: property backup_storage: it takes no backups ({storage})"


def disk_format(cluster: Cluster, node: str, storage: str) -> str | None:
    """Return the format of a new disk, so that it can have snapshots; None to use the default of the storage."""
    row = cluster.storage_rows(node).get(storage, {})
    is_file_storage = row.get("plugintype") in FILE_STORAGES and "images" in str(row.get("content", "")).split(",")
    return "qcow2" if is_file_storage else None


def _requested_vcpus(source: Facts, vm: dict[str, Any]) -> int:
    """Return the number of vCPUs that the guest will have; 0 if the request does not name it."""
    cores, sockets = vm.get("cores"), vm.get("sockets")
    if not cores and not sockets:
        return 0
    return int(cores or source["cores"] or 1) * int(sockets or (1 if cores else source["sockets"]) or 1)


def _cpu_model_problem(cluster: Cluster, node: str, source: Facts, vm: dict[str, Any], is_new: bool) -> str:
    """Return why Proxmox would refuse the CPU model. Custom models are not checked: not every login can see them."""
    model = str(vm.get("cpu_type") or "").partition(",")[0].removeprefix("cputype=")
    current = str(source["config"].get("cpu") or "").partition(",")[0].removeprefix("cputype=")
    if not model or model.startswith("custom-") or (model == current and not is_new):
        return ""
    names = {str(row.get("name")) for row in _listed(cluster.api.nodes(node).capabilities.qemu.cpu)}
    if not names or model in names:
        return ""
    return f"INVALID_REQUEST: property cpu_type: Proxmox knows no such CPU model ({model})"


def _requested_networks(source: Facts, vm: dict[str, Any], is_new: bool) -> tuple[set[tuple[str, str]], set[str]]:
    """Return (bridge, VLAN) of each NIC that changes, and the bridges that are new to a NIC. No VLAN is ''."""
    values = (container if kind_of(vm) == "lxc" else nics).nic_values(source, vm)
    current = {name: str(source["config"].get(name, "")) for name in values}
    changed = [name for name in values if is_new or {*values[name].split(",")} != {*current[name].split(",")}]
    networks = {name: (nics.option_of(values[name], "bridge"), nics.option_of(values[name], "tag")) for name in changed}
    bridges = {
        networks[name][0] for name in changed if is_new or networks[name][0] != nics.option_of(current[name], "bridge")
    }
    return {(bridge, vlan) for bridge, vlan in networks.values() if bridge}, bridges - {""}


def _bridge_problem(cluster: Cluster, node: str, source: Facts, vm: dict[str, Any], is_new: bool) -> str:
    """Return why the guest cannot be connected to a bridge that the request names.

    Proxmox lists only VNets and the bridges of /etc/network/interfaces, but it accepts every bridge that the node has.
    So a bridge that is not listed is accepted if the guest has it already, or if the provider offers it by its name.

    A listed bridge may be refused, because its listing needs only SDN.Audit. To change a NIC, the login needs SDN.Use
    on the NIC's bridge, even if the bridge does not change.
    """
    networks, new_bridges = _requested_networks(source, vm, is_new)
    if not networks:
        return ""
    types = {str(row.get("iface")): str(row.get("type")) for row in _bridge_rows(cluster, node)}
    offered = {*((vm.get("allowed") or {}).get("bridges") or ())} - {ANY}
    current = {nics.option_of(str(value), "bridge") for key, value in source["config"].items() if NIC_KEY.match(key)}
    known = offered | (current if source.get("node") == node else set())
    missing = sorted(new_bridges - types.keys() - known) if types else []
    if missing:
        what = f"Proxmox lists no {', '.join(missing)} on {node}"
        hint = "if it is not defined in /etc/network/interfaces, name it in PROXMOX_BRIDGES, or else grant SDN.Use"
        return f"NOT_FOUND: property bridge: it does not exist ({what}; {hint})"
    vnets = {name for name in types if types[name] == VNET}
    if refused := sorted({bridge for bridge, vlan in networks if not _may_use(cluster, bridge, vlan, bridge in vnets)}):
        return f"PVE_PERMISSION: property bridge: the login may not use it (SDN.Use on {', '.join(refused)})"
    return ""


def _may_use(cluster: Cluster, bridge: str, vlan: str, is_vnet: bool) -> bool:
    """Return whether the login may connect a guest to the bridge, or to one VLAN of it; True if that is unknown.

    Only a login with SDN.Audit may read the zone of a VNet. A login without SDN.Audit sees only VNets that it may use.
    """
    if not is_vnet:
        return cluster.may_use_bridge(LOCAL_ZONE, bridge, vlan)
    rows = _listed(cluster.api.cluster.sdn.vnets)
    zone = next((str(row.get("zone") or "") for row in rows if row.get("vnet") == bridge), "")
    return not zone or cluster.may_use_bridge(zone, bridge, vlan)


def _bridge_rows(cluster: Cluster, node: str) -> list[dict[str, Any]]:
    return _listed(cluster.api.nodes(node).network, type="any_bridge")


def _requested_storages(source: Facts, vm: dict[str, Any], is_new: bool) -> set[str]:
    """Return the storages on which the request puts a disk."""
    steps = disks.disk_steps(source, vm) if kind_of(vm) == "qemu" else []
    storages = {str(step["storage"]) for step in steps if step["state"] != "resized"}
    is_created_there = kind_of(vm) == "lxc" or is_blank(vm) or is_yes(vm.get("full_clone", True))
    if is_new and is_created_there:
        storages.add(str(vm.get("storage") or ""))
    return storages - {""}


def _storage_problem(cluster: Cluster, node: str, storage: str, vm: dict[str, Any]) -> str:
    """Return why the guest cannot have a disk on the storage. Raises one of FAILED_CALL if it is not usable now.

    Proxmox lists only the storages on which the login has a privilege. For another storage, the error of a request
    shows whether it exists.
    """
    row = cluster.storage_rows(node).get(storage)
    if row is not None:
        needed = DISK_CONTENT[kind_of(vm)]
        is_usable = needed in str(row.get("content", needed)).split(",")
        return "" if is_usable else f"INVALID_REQUEST: property storage: it takes no disks of guests ({storage})"
    try:
        cluster.volumes(node, storage, int(vm["vmid"]))
    except FAILED_CALL as exc:
        if NO_STORAGE.search(error_text(exc)):
            return f"NOT_FOUND: property storage: it does not exist ({storage})"
        if getattr(exc, "status_code", 0) != 403:
            raise
    return ""


def _listed(resource: Any, **parameters: Any) -> list[dict[str, Any]]:
    """Return the rows of a list; none if the login may not read it."""
    try:
        return list(resource.get(**parameters))
    except ResourceException as exc:
        if getattr(exc, "status_code", 0) != 403:
            raise
        return []
