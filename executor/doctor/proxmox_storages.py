"""Checks the storages for the disks of VMs and containers, and the storage for backups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from executor.doctor.checks import Area, CheckResult, ResultFactory, command_line, quoted_setting_line
from executor.doctor.proxmox_context import ProxmoxContext
from executor.proxmox.rows import StorageRow

_RESULT_FACTORY = ResultFactory(Area.PROXMOX)
BYTES_PER_GIB = 1024**3
#: A storage with less free space than this is full: not even a small template can be cloned.
MIN_FREE_BYTES = BYTES_PER_GIB

RowsByNode = Mapping[str, StorageRow]


def check_storages(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that the storages for disks, the storages that services may choose, and the backup storage can be used.

    The storages for disks are PROXMOX_STORAGE, or else the storages of the configured templates. The storages that
    services may choose are PROXMOX_STORAGES.
    """
    for storage in sorted(context.disk_storages):
        yield _check_storage(storage, context)
    if not context.disk_storages:  # PROXMOX_STORAGE is not set, and no storage of a configured template is known
        yield _RESULT_FACTORY.ok("storage", "each VM uses the storages of its template")
    for storage in context.storages_selectable_by_services:
        if storage not in context.storage_names:  # the storages that a node has and that the token may see
            yield _result_for_storage_on_no_node(
                "storage", f"PROXMOX_STORAGES names {storage}, which", storage, context
            )
    backup_storage = context.settings.proxmox_backup_storage
    if backup_storage:
        yield _check_backup_storage(backup_storage, context)


def _check_storage(storage: str, context: ProxmoxContext) -> CheckResult:
    """Check that a storage accepts disks, is available on the online nodes and has space."""
    row_by_node = context.storage_row_by_node(storage)
    if not row_by_node:
        return _result_for_storage_on_no_node("storage", f"the storage {storage}", storage, context)
    for content, content_text in (("images", "VM disks"), ("rootdir", "containers")):
        # `rootdir` is checked only if PROXMOX_OS_TEMPLATES names templates of containers.
        is_needed = content == "images" or context.settings.proxmox_os_templates
        if is_needed and not all(content in row.content for row in row_by_node.values()):
            remedy = _content_command(storage, row_by_node, content)
            return _RESULT_FACTORY.fail("storage", f"{storage} does not accept {content_text}", remedy)
    return _check_nodes_of_storage(storage, row_by_node, context)


def _check_nodes_of_storage(storage: str, row_by_node: RowsByNode, context: ProxmoxContext) -> CheckResult:
    """Check that the storage is available on each online node and has free space there."""
    online_nodes = [node.name for node in context.allowed_nodes if node.is_online]
    if not online_nodes:
        return _RESULT_FACTORY.skip(
            "storage", f"{storage}: no node of PROXMOX_NODES is online", "see the result of the check `nodes`"
        )
    available_nodes = {node for node, row in row_by_node.items() if row.is_available}
    nodes_without_storage = [node for node in online_nodes if node not in available_nodes]
    remedies = [f"on {node}: {_status_command(storage)}" for node in nodes_without_storage]
    if len(nodes_without_storage) == len(online_nodes):
        text = f"{storage} is available on none of the nodes {', '.join(online_nodes)}"
        return _RESULT_FACTORY.fail("storage", text, *remedies)
    full_nodes = [node for node in online_nodes if _is_full(row_by_node.get(node))]
    if full_nodes:
        text = f"{storage} is full on {', '.join(full_nodes)}: less than {MIN_FREE_BYTES // BYTES_PER_GIB} GiB are free"
        remedy = f"delete unneeded volumes on {storage}, enlarge this storage, or use another storage"
        other_storage = _other_storage(storage, context, "images")
        return _RESULT_FACTORY.fail(
            "storage", text, f"{remedy}: {quoted_setting_line('PROXMOX_STORAGE', other_storage)}"
        )
    if nodes_without_storage:
        return _RESULT_FACTORY.warn(
            "storage", f"{storage} is not available on {', '.join(nodes_without_storage)}", *remedies
        )
    free_bytes = [row.free_bytes for row in row_by_node.values() if row.free_bytes is not None]
    return _RESULT_FACTORY.ok(
        "storage", f"{storage}: at least {min(free_bytes) // BYTES_PER_GIB} GiB free" if free_bytes else storage
    )


def _is_full(row: StorageRow | None) -> bool:
    return row is not None and row.free_bytes is not None and row.free_bytes < MIN_FREE_BYTES


def _result_for_storage_on_no_node(
    check_name: str, text_start: str, storage: str, context: ProxmoxContext
) -> CheckResult:
    """Return a failed check of a storage that no node has: disabled, missing, or only for nodes outside the cluster.

    `check_name` is "storage" or "backup storage". `text_start` is the text before "does not exist" in the message,
    such as "the storage ceph".
    """
    config = context.storage_configs.get(storage)
    if config is None:
        return _missing_storage_result(check_name, text_start, storage, context)
    if config.is_disabled:
        return _RESULT_FACTORY.fail(
            check_name, f"{storage} is disabled", command_line("pvesm", "set", storage, "--disable", "0")
        )
    text = f"no node of the cluster has {storage}: it is configured for {', '.join(config.nodes) or 'no node'}"
    return _RESULT_FACTORY.fail(check_name, text, command_line("pvesm", "set", storage, "--delete", "nodes"))


def _check_backup_storage(storage: str, context: ProxmoxContext) -> CheckResult:
    row_by_node = context.storage_row_by_node(storage)
    if not row_by_node:
        text_start = f"PROXMOX_BACKUP_STORAGE names {storage}, which"
        return _result_for_storage_on_no_node("backup storage", text_start, storage, context)
    if not all("backup" in row.content for row in row_by_node.values()):
        other_storage = _other_storage(storage, context, "backup")
        remedies = [
            quoted_setting_line("PROXMOX_BACKUP_STORAGE", other_storage),
            _content_command(storage, row_by_node, "backup"),
        ]
        return _RESULT_FACTORY.fail("backup storage", f"{storage} does not accept backups", *remedies)
    if not any(row.is_available for row in row_by_node.values()):
        remedy = f"on the nodes: {_status_command(storage)}"
        return _RESULT_FACTORY.fail("backup storage", f"{storage} is available on no node", remedy)
    return _RESULT_FACTORY.ok("backup storage", storage)


def _missing_storage_result(check_name: str, text_start: str, storage: str, context: ProxmoxContext) -> CheckResult:
    """Return a failed check for a storage that does not exist, or that the token may not see.

    Proxmox's response is the same in both cases. The arguments are those of `_result_for_storage_on_no_node`.
    """
    content, purpose = ("backup", "backups") if check_name == "backup storage" else ("images", "disks")
    visible_names = sorted({row.name for row in context.storages if content in row.content})
    visible_text = f"; for {purpose} the token can see {', '.join(visible_names)}" if visible_names else ""
    setting_by_check = {"backup storage": "PROXMOX_BACKUP_STORAGE", "storage": "PROXMOX_STORAGE"}
    setting = "PROXMOX_STORAGES" if text_start.startswith("PROXMOX_STORAGES") else setting_by_check[check_name]
    remedies = [quoted_setting_line(setting, _other_storage(storage, context, content))]
    remedies.append(
        f"on a node: {_status_command(storage)}; if it exists, grant the token Datastore.Audit on the storage"
    )
    return _RESULT_FACTORY.fail(
        check_name, f"{text_start} does not exist, or the token may not see it{visible_text}", *remedies
    )


def _other_storage(storage: str, context: ProxmoxContext, content: str) -> str:
    """Return the name of another storage that accepts this content and has free space, or `<storage>`.

    A shared storage is preferred.
    """
    rows = [row for row in context.storages if content in row.content and row.is_available and not _is_full(row)]
    names = [row.name for row in sorted(rows, key=lambda row: (not row.is_shared, row.name)) if row.name != storage]
    return names[0] if names else "<storage>"


def _content_command(storage: str, row_by_node: RowsByNode, content: str) -> str:
    """Return the command that lets the storage accept another kind of content.

    The command also names the kinds that the storage accepts already, because `pvesm set` replaces the whole list.
    """
    kinds = {content}.union(*(row.content for row in row_by_node.values()))
    return command_line("pvesm", "set", storage, "--content", ",".join(sorted(kinds)))


def _status_command(storage: str) -> str:
    return command_line("pvesm", "status", "--storage", storage)
