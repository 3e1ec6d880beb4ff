"""Step 5 of 7, the deciding half: an action, a service's properties and its mapping become a PlaybookRun.

Pure, but for the check that a playbook's file exists. Text from outside arrives here as JSON and leaves as values of
the extra var `vm`; it never becomes a path, a template or a shell word.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from executor.errors import ErrorCode, JobError
from executor.model import GuestKind, PlaybookRun
from executor.runs import action_schema, actions, extra_vars
from executor.runs.request import Order, Site
from executor.runs.vm_properties import read_properties

#: Actions whose properties describe the VM itself; all others get the VM's identity only.
SHAPING_ACTIONS = frozenset({"create", "update"})
#: Actions of ours that read a service's properties: a resize takes the disks' sizes.
READING_ACTIONS = SHAPING_ACTIONS | {"resize"}
#: How much of an action's name is in its runs' idents: they name folders, and ansible-core 2.21 has a socket in those,
#: whose whole path may have 107 characters.
LONGEST_IN_IDENT = 16


def find_playbook(action: str, folders: Sequence[Path]) -> Path:
    """Return the playbook of an action. Raises JobError UNSUPPORTED_ACTION when there is none that may be run."""
    return actions.find(action, folders).playbook


def plan(order: Order, site: Site) -> PlaybookRun:
    """Choose the playbook and turn the wish into its extra var.

    Raises JobError: UNSUPPORTED_ACTION, INVALID_REQUEST (a property), NOT_FOUND (no template of that name).
    """
    action = actions.find(order.action, site.folders)
    action_schema.check_properties(action, order.properties)
    timeout_s = min(site.playbook_timeout_s, order.time_left_s)
    vm = _identity(order, site, timeout_s) | _particulars(order, site, is_ours=action.is_ours)
    if not action.is_ours:
        vm["properties"] = dict(order.properties)
    return PlaybookRun(
        ident=f"{order.action[:LONGEST_IN_IDENT]}-{uuid.uuid4().hex[:12]}",
        action=order.action,
        playbook=action.playbook,
        vm=vm,
        timeout_s=timeout_s,
        secrets=order.secrets,
    )


def _identity(order: Order, site: Site, timeout_s: float) -> dict[str, Any]:
    """Return what each action takes: which VM, and how long the playbook may take."""
    vm = {
        "service_id": order.service_id,
        "vmid": order.vmid,
        "name": order.vm_name,
        "cluster": site.cluster,
        "node": order.node or site.node,
        "timeout_s": int(timeout_s),
        "shutdown_timeout_s": int(min(site.shutdown_timeout_s, max(timeout_s / 2, 1))),
        "address_timeout_s": int(site.address_timeout_s),
    }
    return vm if order.kind == GuestKind.QEMU else vm | {"kind": str(order.kind)}


def _particulars(order: Order, site: Site, *, is_ours: bool) -> dict[str, Any]:
    """Return what one action takes beside the VM's identity."""
    if order.action == "create":
        return extra_vars.create_vars(order, site)
    if order.action == "update":
        return extra_vars.update_vars(order, site)
    if order.action == "resize" and is_ours:
        return extra_vars.resize_vars(read_properties(order.properties))
    if order.action == "backup" and is_ours and not site.backup_storage:
        raise JobError(ErrorCode.INVALID_REQUEST, "a backup needs PROXMOX_BACKUP_STORAGE, which is not set")
    found: dict[str, dict[str, Any]] = {
        "snapshot": {"snapshot": order.snapshot},
        "backup": {"backup_storage": site.backup_storage},
        "migrate": {"target_node": order.target_node},
        "delete": _deletion(order, site),
    }
    return {name: value for name, value in found.get(order.action, {}).items() if value not in ("", False)}


def _deletion(order: Order, site: Site) -> dict[str, Any]:
    return {
        "grace_s": int(site.delete_grace_s) or "",
        "only_when_due": order.only_when_due,
        "half_made": order.half_made,
        "final_backup": site.backup_storage if site.final_backup else "",
        "purge": site.delete_purge,
    }
