"""Checks the nodes, the bridges and the resource pool of new VMs."""

from __future__ import annotations

from collections.abc import Iterator

from executor.doctor.checks import Area, CheckResult, ResultFactory, command_line, quoted_setting_line
from executor.doctor.proxmox_context import ProxmoxContext
from executor.doctor.proxmox_privileges import grant_commands
from executor.proxmox.privileges import PrivilegeNeed, privilege_need_for_bridge
from executor.shared.sdn_zones import LOCAL_ZONE

_RESULT_FACTORY = ResultFactory(Area.PROXMOX)
#: The command that applies pending changes of the SDN configuration on all nodes.
APPLY_SDN_COMMAND = "pvesh set /cluster/sdn"
#: The command that ends the maintenance of a node. The name of the node is its last argument, which is added later.
END_MAINTENANCE_COMMAND = ("ha-manager", "crm-command", "node-maintenance", "disable")


def check_nodes(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that the nodes of PROXMOX_NODES exist, are online, send statistics and are not in maintenance."""
    nodes = context.nodes
    is_online_by_name = {node.name: node.is_online for node in nodes}
    allowed_names = context.settings.proxmox_nodes or tuple(is_online_by_name)
    unknown_names = [name for name in allowed_names if name not in is_online_by_name]
    existing_names = [name for name in allowed_names if name in is_online_by_name]
    offline_names = [name for name in existing_names if not is_online_by_name[name]]
    if unknown_names:
        problem = f"PROXMOX_NODES names {', '.join(unknown_names)}, which Proxmox does not have"
        remedy = quoted_setting_line("PROXMOX_NODES", ",".join(existing_names or is_online_by_name))
        yield _RESULT_FACTORY.fail(
            "nodes", f"{problem}; the cluster's nodes are {', '.join(is_online_by_name)}", remedy
        )
    elif len(offline_names) == len(allowed_names):
        yield _RESULT_FACTORY.fail("nodes", "none of the nodes is online", f"start {' or '.join(offline_names)}")
    elif offline_names:
        online_names = ",".join(name for name in allowed_names if name not in offline_names)
        setting = quoted_setting_line("PROXMOX_NODES", online_names)
        remedy = f"start {', '.join(offline_names)}, or use only the other nodes: {setting}"
        yield _RESULT_FACTORY.warn("nodes", f"these nodes are not online: {', '.join(offline_names)}", remedy)
    else:
        yield _RESULT_FACTORY.ok("nodes", ", ".join(allowed_names))
    yield from _check_state_of_nodes(context)


def _check_state_of_nodes(context: ProxmoxContext) -> Iterator[CheckResult]:
    names_without_statistics = [node.name for node in context.allowed_nodes if not node.is_status_known]
    if names_without_statistics:
        names = ", ".join(names_without_statistics)
        problem = f"these nodes send no statistics, so Proxmox does not know the status of their VMs: {names}"
        remedies = [f"on {name}: systemctl restart pvestatd" for name in names_without_statistics]
        yield _RESULT_FACTORY.warn("nodes", problem, *remedies, "look for a storage that does not answer: pvesm status")
    all_names_in_maintenance = context.reader.nodes_in_maintenance()
    names_in_maintenance = [node.name for node in context.allowed_nodes if node.name in all_names_in_maintenance]
    if names_in_maintenance:
        problem = f"these nodes are in maintenance, so they get no new VM: {', '.join(names_in_maintenance)}"
        yield _RESULT_FACTORY.warn(
            "nodes", problem, *(command_line(*END_MAINTENANCE_COMMAND, name) for name in names_in_maintenance)
        )


def check_bridges(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that the bridges in PROXMOX_BRIDGE and PROXMOX_BRIDGES exist on the nodes."""
    if not context.bridges_by_node:
        yield _RESULT_FACTORY.skip(
            "bridge", "no node of PROXMOX_NODES is online", "see the result of the check `nodes`"
        )
        return
    for bridge in context.allowed_bridges:
        yield _check_bridge(bridge, context)


def _check_bridge(bridge: str, context: ProxmoxContext) -> CheckResult:
    """Check that the bridge exists on each node.

    Proxmox lists VNets, and the bridges in /etc/network/interfaces. But a VM can use any bridge of the node. So a
    bridge may exist, but be missing in Proxmox's list.

    If only some nodes list the bridge, the result is a warning. If no node lists the bridge, the result is a failure.
    The only exception is a bridge that is not a VNet and that the token may use: its result is a warning.
    """
    bridges_by_node = context.bridges_by_node
    nodes_without_bridge = [node for node, bridges in bridges_by_node.items() if bridge not in bridges]
    if not nodes_without_bridge:
        return _RESULT_FACTORY.ok("bridge", bridge)
    problem = f"{bridge} does not exist on {', '.join(nodes_without_bridge)}, or the token may not see it (SDN.Use)"
    remedies = [f"on {nodes_without_bridge[0]}: {command_line('ip', 'link', 'show', bridge)}"]
    if len(nodes_without_bridge) < len(bridges_by_node):
        return _RESULT_FACTORY.warn("bridge", problem, *remedies)
    remedies = [*_remedies_that_avoid_bridge(bridge, context), *remedies]
    zone = context.zone_by_bridge[bridge]
    # A PrivilegeNeed names a path, the privileges that the token needs on it, and the role that contains them.
    need = privilege_need_for_bridge(bridge, zone)
    may_token_use_bridge = "SDN.Use" in context.reader.permissions(need.path)
    if zone != LOCAL_ZONE:  # the bridge is a VNet; other bridges belong to LOCAL_ZONE
        return _vnet_problem_result(
            context, need, f"VNet {bridge} of the zone {zone}", may_token_use_bridge=may_token_use_bridge
        )
    if not may_token_use_bridge:
        return _RESULT_FACTORY.fail("bridge", problem, *remedies)
    text = f"Proxmox lists no {bridge} on {', '.join(nodes_without_bridge)}, but its list may be incomplete"
    return _RESULT_FACTORY.warn("bridge", f"{text}; if the bridge does not exist, VMs do not start", *remedies)


def _vnet_problem_result(
    context: ProxmoxContext, need: PrivilegeNeed, vnet_text: str, *, may_token_use_bridge: bool
) -> CheckResult:
    if may_token_use_bridge:
        nodes = ", ".join(context.bridges_by_node)
        return _RESULT_FACTORY.fail(
            "bridge",
            f"the {vnet_text} is not on {nodes}: apply the SDN configuration, or add the nodes to this zone",
            APPLY_SDN_COMMAND,
        )
    return _RESULT_FACTORY.fail(
        "bridge", f"the token may not use the {vnet_text} (SDN.Use)", *grant_commands(context, need)
    )


def _remedies_that_avoid_bridge(bridge: str, context: ProxmoxContext) -> list[str]:
    """Return a line `NAME=value` that changes a setting so that new VMs do not use `bridge`.

    If PROXMOX_BRIDGE is `bridge`, the line sets it to a bridge that every node has. Otherwise, the line removes
    `bridge` from PROXMOX_BRIDGES. Return no line if PROXMOX_BRIDGE is `bridge` and the nodes have no bridge in common.
    """
    settings = context.settings
    if bridge != settings.proxmox_bridge:
        return [
            quoted_setting_line(
                "PROXMOX_BRIDGES", ",".join(name for name in settings.proxmox_bridges if name != bridge)
            )
        ]
    common_bridges = sorted(frozenset.intersection(*context.bridges_by_node.values()))
    return [quoted_setting_line("PROXMOX_BRIDGE", common_bridges[0])] if common_bridges else []


def check_pool(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that PROXMOX_POOL exists. Proxmox lists a pool only if the token has the privilege Pool.Audit on it."""
    pool = context.settings.proxmox_pool
    if not pool:
        return
    add_command = command_line("pveum", "pool", "add", pool)
    if pool in context.reader.pools():
        yield _RESULT_FACTORY.ok("pool", pool)
    elif "Pool.Audit" in context.reader.permissions(f"/pool/{pool}"):
        text = f"PROXMOX_POOL names {pool}, which Proxmox does not have"
        yield _RESULT_FACTORY.fail("pool", text, add_command)
    else:
        text = f"unknown whether the pool {pool} exists: the token may not see it (Pool.Audit on /pool/{pool})"
        yield _RESULT_FACTORY.skip("pool", text, f"on a node: pveum pool list; if the pool is missing: {add_command}")
