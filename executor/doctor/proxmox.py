"""Checks Proxmox: the API, the token's privileges, and the nodes, templates, storages and bridges for VMs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from executor.doctor.checks import Area, CheckResult, ResultFactory
from executor.doctor.deleted_vms import check_deleted_vms
from executor.doctor.proxmox_context import ProxmoxContext
from executor.doctor.proxmox_templates import check_os_templates, check_templates
from executor.errors import JobError
from executor.proxmox import privileges
from executor.proxmox.client import SMITH_TAG, ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.proxmox.rows import NodeRow, StorageRow
from executor.settings.settings import Settings
from executor.settings.types import ANY
from executor.shared.error_codes import ErrorCode

_RESULT = ResultFactory(Area.PROXMOX)
#: The major versions of Proxmox VE with which this release is tested.
TESTED_MAJOR_VERSIONS = ("8", "9")
#: The check warns when a smaller share of the VMID range than this is free.
MIN_FREE_VMID_SHARE = 0.05


def check_proxmox(settings: Settings) -> Iterator[CheckResult]:
    """Check Proxmox. If the first request fails, no other check runs.

    If a later request fails, only the check that sent this request fails. The other checks still run.
    """
    context = ProxmoxContext(settings, ProxmoxReader(ProxmoxConnection.from_settings(settings)))
    try:
        version = context.reader.version()
    except JobError as error:
        yield _RESULT.fail("reachable", str(error), *_connection_hints(error, settings))
        return
    yield from _check_connection(version, settings)
    for name, check in (
        ("quorum", _check_quorum),
        ("privileges", _check_privileges),
        ("nodes", _check_nodes),
        ("templates", check_templates),
        ("os templates", check_os_templates),
        ("storage", _check_storages),
        ("bridge", _check_bridges),
        ("vmid range", _check_vmid_range),
        ("tags", _check_tags),
        ("deleted vms", check_deleted_vms),
    ):
        yield from _run_check(name, check, context)


def _run_check(
    name: str, check: Callable[[ProxmoxContext], Iterator[CheckResult]], context: ProxmoxContext
) -> Iterator[CheckResult]:
    """Run one check. If Proxmox returns an error, the result is a failed check."""
    try:
        yield from check(context)
    except JobError as error:
        yield _RESULT.fail(name, str(error))


def _connection_hints(error: JobError, settings: Settings) -> tuple[str, ...]:
    if error.code is ErrorCode.PVE_TLS:
        return ("PROXMOX_CA_BUNDLE=/path/to/pve-root-ca.pem (on a node: /etc/pve/pve-root-ca.pem)",)
    if error.code is ErrorCode.PVE_AUTH:
        token = f"the token {settings.proxmox_user}!{settings.proxmox_token_id}"
        credential = token if settings.proxmox_token_id else "the password"
        return (f"check that {credential} is right and not expired",)
    return ()


def _check_connection(version: str, settings: Settings) -> Iterator[CheckResult]:
    yield _RESULT.ok("reachable", f"{settings.proxmox_host}:{settings.proxmox_port}")
    if settings.proxmox_validate_certs:
        yield _RESULT.ok("tls", "verified")
    else:
        yield _RESULT.warn("tls", "the certificate is not verified", "PROXMOX_VALIDATE_CERTS=true")
    if version.partition(".")[0] in TESTED_MAJOR_VERSIONS:
        yield _RESULT.ok("version", f"Proxmox VE {version}")
    else:
        tested = " and ".join(TESTED_MAJOR_VERSIONS)
        text = f"Proxmox VE {version or 'of unknown version'}; Agent Smith is tested with the versions {tested}"
        yield _RESULT.warn("version", text)


def _check_quorum(context: ProxmoxContext) -> Iterator[CheckResult]:
    if context.reader.is_quorate():
        yield _RESULT.ok("quorum")
    else:
        yield _RESULT.fail("quorum", "the cluster has no quorum: no VM can be changed", "pvecm status")


def _check_privileges(context: ProxmoxContext) -> Iterator[CheckResult]:
    settings = context.settings
    needs = privileges.list_needs(
        context.major_version,
        disk_storages=context.disk_storages,
        bridge=settings.proxmox_bridge,
        image_storages={volume.partition(":")[0] for volume in settings.proxmox_os_templates.values()},
        backup_storage=settings.proxmox_backup_storage,
    )
    granted_by_path = {need.path: context.reader.permissions(need.path) for need in needs}
    missing_privileges_by_need = privileges.unmet_needs(needs, granted_by_path)
    for need in needs:
        if need in missing_privileges_by_need:
            text = f"{', '.join(sorted(missing_privileges_by_need[need]))} missing on {need.path}, {need.purpose}"
            yield _RESULT.fail("privileges", text, *_grant_commands(context, need))
    if not missing_privileges_by_need:
        paths = dict.fromkeys(need.path for need in needs)
        yield _RESULT.ok("privileges", f"the token has all needed privileges on {', '.join(paths)}")
    if len(context.allowed_nodes) > 1 and "Sys.Audit" not in context.reader.permissions("/nodes"):
        # The result is ok, because the agent can place VMs without this privilege.
        reason = "the token may not read the load of the nodes (Sys.Audit on /nodes)"
        text = f"each new VM is placed on its template's node, because {reason}"
        yield _RESULT.ok("placement", text)


def _grant_commands(context: ProxmoxContext, need: privileges.PrivilegeNeed) -> list[str]:
    """Return the `pveum` commands that grant the token the needed privileges."""
    settings = context.settings
    return privileges.pveum_commands(
        [need], context.reader.roles(), user=settings.proxmox_user, token_id=settings.proxmox_token_id
    )


def _check_nodes(context: ProxmoxContext) -> Iterator[CheckResult]:
    nodes = context.reader.nodes()
    is_online_by_name = {node.name: node.is_online for node in nodes}
    allowed_names = context.settings.proxmox_nodes or tuple(is_online_by_name)
    unknown_names = [name for name in allowed_names if name not in is_online_by_name]
    known_names = [name for name in allowed_names if name in is_online_by_name]
    offline_names = [name for name in known_names if not is_online_by_name[name]]
    if unknown_names:
        problem = f"PROXMOX_NODES names {', '.join(unknown_names)}, which Proxmox does not have"
        yield _RESULT.fail("nodes", f"{problem}; its nodes are {', '.join(is_online_by_name)}")
    elif len(offline_names) == len(allowed_names):
        yield _RESULT.fail("nodes", "none of the nodes is online")
    elif offline_names:
        yield _RESULT.warn("nodes", f"these nodes are not online: {', '.join(offline_names)}")
    else:
        yield _RESULT.ok("nodes", ", ".join(allowed_names))
    silent_names = [node.name for node in nodes if node.name in allowed_names and not node.has_statistics]
    if silent_names:
        problem = f"these nodes send no statistics, so Proxmox's lists lack facts of VMs: {', '.join(silent_names)}"
        yield _RESULT.warn("nodes", problem, "systemctl restart pvestatd; look for a storage that does not answer")


def _check_storages(context: ProxmoxContext) -> Iterator[CheckResult]:
    rows = context.storages
    for storage in sorted(context.disk_storages):
        row_by_node = {row.node: row for row in rows if row.name == storage}
        yield _check_storage(storage, row_by_node, context.allowed_nodes)
    if not context.disk_storages:
        yield _RESULT.ok("storage", "each VM uses the storages of its template")
    for storage in context.offered_storages:
        if not any(row.name == storage for row in rows):
            text = f"PROXMOX_STORAGES names {storage}, which does not exist, or the token may not see it"
            yield _RESULT.fail("storage", text)


def _check_storage(storage: str, row_by_node: Mapping[str, StorageRow], nodes: Sequence[NodeRow]) -> CheckResult:
    """Check that a storage accepts VM disks and is available on the online nodes."""
    if not row_by_node:
        return _RESULT.fail("storage", f"the storage {storage} does not exist, or the token may not see it")
    if not all(row.may_hold_disks for row in row_by_node.values()):
        return _RESULT.fail("storage", f"{storage} does not accept VM disks", f"pvesm set {storage} --content images,…")
    online_nodes = [node.name for node in nodes if node.is_online]
    available_nodes = {node for node, row in row_by_node.items() if row.is_available}
    nodes_without_storage = [node for node in online_nodes if node not in available_nodes]
    if len(nodes_without_storage) == len(online_nodes):
        return _RESULT.fail("storage", f"{storage} is available on none of the nodes {', '.join(online_nodes)}")
    if nodes_without_storage:
        return _RESULT.warn("storage", f"{storage} is not available on {', '.join(nodes_without_storage)}")
    return _RESULT.ok("storage", storage)


def _check_bridges(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that the bridges which a VM may have exist on the nodes."""
    settings = context.settings
    online_nodes = [node.name for node in context.allowed_nodes if node.is_online]
    bridges_by_node = {node: context.reader.bridges(node) for node in online_nodes}
    offered = [settings.proxmox_bridge, *settings.proxmox_bridges]
    for bridge in dict.fromkeys(name for name in offered if name != ANY):
        yield _check_bridge(bridge, bridges_by_node)


def _check_bridge(bridge: str, bridges_by_node: Mapping[str, frozenset[str]]) -> CheckResult:
    nodes_without_bridge = [node for node, bridges in bridges_by_node.items() if bridge not in bridges]
    if not nodes_without_bridge:
        return _RESULT.ok("bridge", bridge)
    problem = f"{bridge} does not exist on {', '.join(nodes_without_bridge)}, or the token may not see it (SDN.Use)"
    if len(nodes_without_bridge) == len(bridges_by_node):
        return _RESULT.fail("bridge", problem)
    return _RESULT.warn("bridge", problem)


def _check_vmid_range(context: ProxmoxContext) -> Iterator[CheckResult]:
    lowest, highest = context.settings.proxmox_vmid_min, context.settings.proxmox_vmid_max
    vmid_count = highest - lowest + 1
    used_count = sum(lowest <= row.vmid <= highest for row in context.guests)
    free_count = vmid_count - used_count
    free_vmids_text = f"{free_count} of {vmid_count} VMIDs between {lowest} and {highest}"
    text = f"{free_vmids_text} are free, or belong to guests that the token may not see"
    if free_count <= 0:
        yield _RESULT.fail("vmid range", text, "PROXMOX_VMID_MAX=…")
    elif free_count < vmid_count * MIN_FREE_VMID_SHARE:
        yield _RESULT.warn("vmid range", text, "PROXMOX_VMID_MAX=…")
    else:
        yield _RESULT.ok("vmid range", text)


def _check_tags(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that the token may change tags of VMs. Without this right, VMs get no tags."""
    seen_tags = {tag for row in context.guests for tag in row.tags}
    is_restricted = privileges.are_tags_restricted(context.reader.cluster_options(), [SMITH_TAG], seen_tags)
    if not is_restricted or "Sys.Modify" in context.reader.permissions("/"):
        yield _RESULT.ok("tags")
        return
    problem = "the cluster's options user-tag-access or registered-tags forbid some tags, so VMs may get no tags"
    yield _RESULT.warn("tags", problem, "set user-tag-access to free, or grant the token Sys.Modify on /")
