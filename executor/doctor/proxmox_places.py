"""Checks the nodes, storages, bridges and the pool of new VMs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from executor.doctor.checks import Area, CheckResult, ResultFactory
from executor.doctor.proxmox_context import ProxmoxContext
from executor.proxmox.privileges import bridge_need
from executor.proxmox.rows import NodeRow, StorageRow

_RESULT = ResultFactory(Area.PROXMOX)


def check_nodes(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that the nodes of PROXMOX_NODES exist, are online, send statistics and accept VMs."""
    nodes = context.nodes
    is_online_by_name = {node.name: node.is_online for node in nodes}
    allowed_names = context.settings.proxmox_nodes or tuple(is_online_by_name)
    unknown_names = [name for name in allowed_names if name not in is_online_by_name]
    known_names = [name for name in allowed_names if name in is_online_by_name]
    offline_names = [name for name in known_names if not is_online_by_name[name]]
    if unknown_names:
        problem = f"PROXMOX_NODES names {', '.join(unknown_names)}, which Proxmox does not have"
        remedy = f"PROXMOX_NODES={','.join(known_names or is_online_by_name)}"
        yield _RESULT.fail("nodes", f"{problem}; its nodes are {', '.join(is_online_by_name)}", remedy)
    elif len(offline_names) == len(allowed_names):
        yield _RESULT.fail("nodes", "none of the nodes is online", "pvecm status")
    elif offline_names:
        yield _RESULT.warn("nodes", f"these nodes are not online: {', '.join(offline_names)}", "pvecm status")
    else:
        yield _RESULT.ok("nodes", ", ".join(allowed_names))
    yield from _check_state_of_nodes(context)


def _check_state_of_nodes(context: ProxmoxContext) -> Iterator[CheckResult]:
    silent_names = [node.name for node in context.allowed_nodes if not node.has_statistics]
    if silent_names:
        problem = f"these nodes send no statistics, so Proxmox's lists lack facts of VMs: {', '.join(silent_names)}"
        yield _RESULT.warn("nodes", problem, "systemctl restart pvestatd; look for a storage that does not answer")
    in_maintenance = context.reader.nodes_in_maintenance()
    names = [node.name for node in context.allowed_nodes if node.name in in_maintenance]
    if names:
        problem = f"these nodes are in maintenance, so they get no new VM: {', '.join(names)}"
        yield _RESULT.warn(
            "nodes", problem, *(f"ha-manager crm-command node-maintenance disable {name}" for name in names)
        )


def check_storages(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that the storages for disks, those that services may name, and that for backups exist and can be used."""
    rows_by_name: dict[str, dict[str, StorageRow]] = {}
    for row in context.storages:
        rows_by_name.setdefault(row.name, {})[row.node] = row
    for storage in sorted(context.disk_storages):
        yield _check_storage(storage, rows_by_name.get(storage, {}), context.allowed_nodes)
    if not context.disk_storages:
        yield _RESULT.ok("storage", "each VM uses the storages of its template")
    for storage in context.offered_storages:
        if storage not in rows_by_name:
            yield _missing_storage("storage", f"PROXMOX_STORAGES names {storage}, which", storage)
    backup_storage = context.settings.proxmox_backup_storage
    if backup_storage:
        yield _check_backup_storage(backup_storage, rows_by_name.get(backup_storage, {}))


def _check_storage(storage: str, row_by_node: Mapping[str, StorageRow], nodes: Sequence[NodeRow]) -> CheckResult:
    """Check that a storage accepts VM disks and is available on the online nodes."""
    if not row_by_node:
        return _missing_storage("storage", f"the storage {storage}", storage)
    if not all(row.may_hold_disks for row in row_by_node.values()):
        return _RESULT.fail("storage", f"{storage} does not accept VM disks", f"pvesm set {storage} --content images,…")
    online_nodes = [node.name for node in nodes if node.is_online]
    if not online_nodes:
        return _RESULT.skip("storage", f"{storage}: no node of PROXMOX_NODES is online", "see the check nodes")
    available_nodes = {node for node, row in row_by_node.items() if row.is_available}
    nodes_without_storage = [node for node in online_nodes if node not in available_nodes]
    remedy = f"on the nodes: pvesm status --storage {storage}"
    if len(nodes_without_storage) == len(online_nodes):
        return _RESULT.fail("storage", f"{storage} is available on none of the nodes {', '.join(online_nodes)}", remedy)
    if nodes_without_storage:
        return _RESULT.warn("storage", f"{storage} is not available on {', '.join(nodes_without_storage)}", remedy)
    return _RESULT.ok("storage", storage)


def _check_backup_storage(storage: str, row_by_node: Mapping[str, StorageRow]) -> CheckResult:
    if not row_by_node:
        return _missing_storage("backup storage", f"PROXMOX_BACKUP_STORAGE names {storage}, which", storage)
    if not all(row.may_hold_backups for row in row_by_node.values()):
        remedy = f"pvesm set {storage} --content backup,…"
        return _RESULT.fail("backup storage", f"{storage} does not accept backups", remedy)
    if not any(row.is_available for row in row_by_node.values()):
        remedy = f"on the nodes: pvesm status --storage {storage}"
        return _RESULT.fail("backup storage", f"{storage} is available on no node", remedy)
    return _RESULT.ok("backup storage", storage)


def _missing_storage(name: str, subject: str, storage: str) -> CheckResult:
    """Return a failure. Proxmox does not say whether the storage is missing or the token may not see it."""
    remedy = f"on a node: pvesm status --storage {storage}; if it exists, grant the token Datastore.Audit on it"
    return _RESULT.fail(name, f"{subject} does not exist, or the token may not see it", remedy)


def check_bridges(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that the bridges which a VM may have exist on the nodes."""
    if not context.bridges_by_node:
        yield _RESULT.skip("bridge", "no node of PROXMOX_NODES is online", "see the check nodes")
        return
    for bridge in context.bridges:
        yield _check_bridge(context, bridge, context.bridges_by_node)


def _check_bridge(context: ProxmoxContext, bridge: str, bridges_by_node: Mapping[str, frozenset[str]]) -> CheckResult:
    """Check that Proxmox lists a bridge on each node. It lists those of /etc/network/interfaces, but uses every one."""
    nodes_without_bridge = [node for node, bridges in bridges_by_node.items() if bridge not in bridges]
    if not nodes_without_bridge:
        return _RESULT.ok("bridge", bridge)
    problem = f"{bridge} does not exist on {', '.join(nodes_without_bridge)}, or the token may not see it (SDN.Use)"
    remedy = f"on these nodes: ip link show {bridge}; if it exists, pveum-role.sh --bridge {bridge} grants SDN.Use"
    if len(nodes_without_bridge) < len(bridges_by_node):
        return _RESULT.warn("bridge", problem, remedy)
    if "SDN.Use" not in context.reader.permissions(bridge_need(bridge).path):
        return _RESULT.fail("bridge", problem, remedy)
    unknown = f"Proxmox lists no {bridge} on {', '.join(nodes_without_bridge)}: unknown whether the nodes have it"
    return _RESULT.warn("bridge", unknown, f"on these nodes: ip link show {bridge}; without it VMs do not start")


def check_pool(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that PROXMOX_POOL exists. Proxmox lists a pool only to a token with Pool.Audit on it."""
    pool = context.settings.proxmox_pool
    if not pool:
        return
    if pool in context.reader.pools():
        yield _RESULT.ok("pool", pool)
    elif "Pool.Audit" in context.reader.permissions(f"/pool/{pool}"):
        text = f"PROXMOX_POOL names {pool}, which Proxmox does not have"
        yield _RESULT.fail("pool", text, f"pveum pool add {pool}")
    else:
        text = f"unknown whether the pool {pool} exists: the token may not see it (Pool.Audit on /pool/{pool})"
        yield _RESULT.skip("pool", text, f"on a node: pveum pool list; if it is missing: pveum pool add {pool}")
