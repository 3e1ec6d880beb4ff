# SPDX-License-Identifier: Apache-2.0
"""Finds requested bridges and VNets that a node does not have, or that the login may not use.

The login is the Proxmox user or API token that the action plugins use.

Proxmox checks a bridge only when it changes the NICs (after a clone) or when it starts the guest. So the action plugins
check the bridges before the first change.

`vm` is the request (docs/actions.md). `source` contains the facts of the guest or, before a clone, of the template. A
problem is `CODE: property NAME: text (details)`: NAME is the property of the service in FulcrumCore that causes the
problem, such as `bridge`. Customers see `property NAME: text`; only operators see the details.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from . import container, nics
from .allowed import ANY_VALUE
from .client import ResourceException, read_list_or_empty_if_forbidden
from .guest_facts import NIC_KEY
from .identity import kind_of
from .shared.sdn_zones import LOCAL_ZONE, VNET_NAME, zone_in_refusal

if TYPE_CHECKING:
    from .cluster import Cluster

#: What Proxmox reports about a guest or a template, such as its status and its configuration (see `guest_facts.py`).
Facts = dict[str, Any]
#: The type of a VNet in Proxmox's list of bridges.
VNET = "vnet"
#: The HTTP status of an answer if Proxmox has no SDN, and a part of the error text if no VNet has the requested name.
NO_SDN_STATUS, NO_VNET_TEXT = 501, "does not exist"


class Network(NamedTuple):
    """The network of a NIC: a bridge, and VLANs on this bridge if the NIC has a tag or trunks."""

    bridge: str
    tag: str
    trunks: str


def bridge_problem(cluster: Cluster, node: str, source: Facts, vm: dict[str, Any], is_new: bool) -> str:
    """Return why the guest cannot be connected to a bridge that the request names; '' if it can.

    `is_new` is true if the guest does not exist yet.

    Proxmox lists only VNets and the bridges of /etc/network/interfaces, but it accepts every bridge that the node has.
    So an unlisted bridge is accepted here if the guest already has it, or if `vm["allowed"]` (the values that the
    provider's settings permit) names it. VNets need no such exception: Proxmox lists each VNet that the node has and
    that the login may use.

    A listed bridge may be refused, too: a login with SDN.Audit sees the bridge in the list, but to change a NIC, a
    login needs SDN.Use on the NIC's current network and on its new network, even if the bridge does not change.
    """
    networks, new_bridges = _changed_networks(source, vm, is_new)
    if not networks:
        return ""
    # "any_bridge" means bridges of Linux and of Open vSwitch, and VNets.
    rows = read_list_or_empty_if_forbidden(cluster.api.nodes(node).network, type="any_bridge")
    type_of_bridge = {str(row.get("iface")): str(row.get("type")) for row in rows}
    # LOCAL_ZONE is the zone of every bridge that is not a VNet. An unlisted bridge may be a VNet that the login may not
    # use. So its type defaults to VNET: for a VNET, `_zone_of` asks Proxmox for the zone.
    zone_of_bridge = {
        bridge: _zone_of(cluster, bridge, type_of_bridge.get(bridge, VNET)) for bridge, _tag, _trunks in networks
    }
    # `type_of_bridge` is empty if the login may not read the list. Then no bridge counts as unlisted.
    unlisted_bridges = {
        bridge
        for bridge in new_bridges - type_of_bridge.keys()
        if type_of_bridge and bridge not in _current_bridges(source, node)
    }
    missing_bridges = {
        bridge
        for bridge in unlisted_bridges
        if zone_of_bridge[bridge] != LOCAL_ZONE or bridge not in _explicitly_allowed_bridges(vm)
    }
    networks_to_check = [
        network
        for network in networks
        if zone_of_bridge[network.bridge] != LOCAL_ZONE or network.bridge not in missing_bridges
    ]
    paths_without_sdn_use = {
        _path_without_sdn_use(cluster, zone_of_bridge[network.bridge], network) for network in networks_to_check
    } - {""}
    if paths_without_sdn_use:
        paths = ", ".join(sorted(paths_without_sdn_use))
        return f"PVE_PERMISSION: property bridge: the login may not use the bridge (it lacks SDN.Use on {paths})"
    if missing_bridges:
        reason = f"Proxmox lists no {', '.join(sorted(missing_bridges))} on {node}"
        hint = (
            "if the node has the bridge: grant SDN.Use on it; a bridge that /etc/network/interfaces does not define "
            "must be named in PROXMOX_BRIDGES"
        )
        return f"NOT_FOUND: property bridge: the bridge does not exist ({reason}; {hint})"
    return ""


def _changed_networks(source: Facts, vm: dict[str, Any], is_new: bool) -> tuple[set[Network], set[str]]:
    """Return the current and the new networks of the NICs that change, and the bridges that are new to a NIC.

    For a new guest only the new networks are returned: Proxmox checks the template's networks when it clones.
    """
    values = (container if kind_of(vm) == "lxc" else nics).requested_nic_values(source, vm)
    current_values = {} if is_new else {name: str(source["config"].get(name, "")) for name in values}
    changed_nics = [name for name in values if {*values[name].split(",")} != {*current_values.get(name, "").split(",")}]
    new_networks = {name: _network_of(values[name]) for name in changed_nics}
    old_networks = {name: _network_of(current_values.get(name, "")) for name in changed_nics}
    new_bridges = {
        new_networks[name].bridge for name in changed_nics if new_networks[name].bridge != old_networks[name].bridge
    }
    networks = {*new_networks.values(), *old_networks.values()}
    return {network for network in networks if network.bridge}, new_bridges - {""}


def _network_of(nic_value: str) -> Network:
    return Network(*(nics.option_of(nic_value, option) for option in ("bridge", "tag", "trunks")))


def _explicitly_allowed_bridges(vm: dict[str, Any]) -> set[str]:
    """Return the bridges that `vm["allowed"]` names. The entry ANY_VALUE (`*`) permits every bridge but names none."""
    return {*((vm.get("allowed") or {}).get("bridges") or ())} - {ANY_VALUE}


def _current_bridges(source: Facts, node: str) -> set[str]:
    """Return the bridges of the guest or template; an empty set if the guest or template is not on `node`."""
    if source.get("node") != node:
        return set()
    return {nics.option_of(str(value), "bridge") for key, value in source["config"].items() if NIC_KEY.match(key)}


def _zone_of(cluster: Cluster, bridge: str, listed_type: str) -> str:
    """Return the SDN zone of a bridge: the zone of the VNet with this name, or LOCAL_ZONE if there is no such VNet.

    If the login has no privilege on the VNet, Proxmox refuses the request, but the text of this refusal names the zone.
    """
    if listed_type != VNET or not VNET_NAME.fullmatch(bridge):
        return LOCAL_ZONE
    try:
        return str(cluster.api.cluster.sdn.vnets(bridge).get().get("zone") or LOCAL_ZONE)
    except ResourceException as exc:
        if exc.status_code not in (403, NO_SDN_STATUS) and NO_VNET_TEXT not in str(exc):
            raise
        return zone_in_refusal(str(exc)) or LOCAL_ZONE


def _path_without_sdn_use(cluster: Cluster, zone: str, network: Network) -> str:
    """Return the first access control path on which the login lacks SDN.Use for this network; '' if there is none.

    The path of a bridge is `/sdn/zones/ZONE/BRIDGE`, the path of a VLAN on this bridge `/sdn/zones/ZONE/BRIDGE/VLAN`.
    """
    bridge_path = f"/sdn/zones/{zone}/{network.bridge}"
    vlans = [network.tag] if network.tag else []
    if network.trunks and not _privileges(cluster, bridge_path).get("SDN.Use"):
        vlans += _vlans_of(network.trunks)
    paths = [f"{bridge_path}/{vlan}" for vlan in vlans] or ([] if network.trunks else [bridge_path])
    return next((path for path in paths if "SDN.Use" not in _privileges(cluster, path)), "")


def _privileges(cluster: Cluster, path: str) -> dict[str, Any]:
    """Return the login's privileges on a path. The value of a privilege says whether it propagates to lower paths."""
    return dict(cluster.api.access.permissions.get(path=path).get(path) or {})


def _vlans_of(trunks: str) -> list[str]:
    """Return the VLANs that trunks such as `4;10-12` name."""
    vlans: set[int] = set()
    for trunk in filter(None, trunks.split(";")):
        first, _, last = trunk.partition("-")
        vlans.update(range(int(first), int(last or first) + 1))
    return [str(vlan) for vlan in sorted(vlans)]
