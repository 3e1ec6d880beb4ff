"""Step 5 of a job's processing (ARCHITECTURE.md): decides which playbook runs for a job, and with which extra var `vm`.

The functions change nothing. The only files that they read are in the folders of the playbooks. The action's name,
which must match a pattern, becomes a file name. All other text from FulcrumCore is used only as a value in `vm`, never
as a path, a template or a part of a shell command. The provider, which is the organisation that operates the agent, can
add actions to the actions of Agent Smith, and can replace the actions of Agent Smith.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from executor.errors import JobError
from executor.model import GuestKind, PlaybookRun
from executor.runs import action_schema, actions, extra_vars
from executor.runs.request import PlaybookSettings, RunRequest
from executor.runs.vm_properties import read_properties
from executor.shared.error_codes import ErrorCode

#: The actions of Agent Smith that configure the VM from the service's properties.
CONFIGURING_ACTIONS = frozenset({"create", "update"})
#: All actions of Agent Smith that read the service's properties. `resize` reads only the sizes of the disks.
ACTIONS_WITH_PROPERTIES = CONFIGURING_ACTIONS | {"resize"}
#: A run's ident contains at most this many characters of the action's name. The length is limited, because the ident is
#: the name of the run's folder, ansible-core 2.21 opens a socket in this folder, and the path of a socket may have at
#: most 107 characters.
MAX_ACTION_LENGTH_IN_IDENT = 16
#: Number of random hexadecimal digits at the end of a run's ident, which make the ident unique.
RANDOM_DIGIT_COUNT_IN_IDENT = 12


def find_playbook(action: str, folders: Sequence[Path]) -> Path:
    """Return the playbook of an action. Raises JobError UNSUPPORTED_ACTION when it is missing or unsafe.

    A provider's playbook is unsafe, for example, if users other than root and the agent's user can change it.
    """
    return actions.find_safe_action(action, folders).playbook


def plan(request: RunRequest, settings: PlaybookSettings) -> PlaybookRun:
    """Plan one run: choose its playbook and make the extra var `vm`.

    Raises JobError: UNSUPPORTED_ACTION (the action has no safe playbook), INVALID_REQUEST (a property is wrong),
    NOT_FOUND (the requested template is not in the settings).
    """
    action = actions.find_safe_action(request.action, settings.playbook_folders)
    action_schema.check_properties(action, request.properties)
    timeout_s = min(settings.playbook_timeout_s, request.time_left_s)
    # `is_ours` is True if Agent Smith contains the action, False if the provider has added it.
    vm = _common_members(request, settings, timeout_s) | _action_members(request, settings, is_ours=action.is_ours)
    # `request.agent_id` is '' if the agent's id is not known.
    if action.is_ours and request.agent_id and request.action in CONFIGURING_ACTIONS:
        vm["agent_id"] = request.agent_id  # these actions write the id to the VM's description
    if not action.is_ours:
        vm["properties"] = dict(request.properties)
    return PlaybookRun(
        ident=f"{request.action[:MAX_ACTION_LENGTH_IN_IDENT]}-{uuid.uuid4().hex[:RANDOM_DIGIT_COUNT_IN_IDENT]}",
        action=request.action,
        playbook=action.playbook,
        vm=vm,
        timeout_s=timeout_s,
        secrets=request.secrets,
    )


def _common_members(request: RunRequest, settings: PlaybookSettings, timeout_s: float) -> dict[str, Any]:
    """Return the members of `vm` that every action gets: the VM's identity and the time limits."""
    max_shutdown_s = max(timeout_s / 2, 1)  # leave half of the run's time for the other steps of the playbook
    vm = {
        "service_id": request.service_id,
        "vmid": request.vmid,
        "name": request.vm_name,
        "cluster": settings.cluster,
        "node": request.node or settings.node,
        "timeout_s": int(timeout_s),
        "shutdown_timeout_s": int(min(settings.shutdown_timeout_s, max_shutdown_s)),
        "address_timeout_s": int(settings.address_timeout_s),  # maximum wait for an IP address after a start
    }
    # `allowed` lists the bridges, VLANs, storages and tags that a service may use. Without `allowed`,
    # a service may use all of them.
    if settings.allowed:
        vm["allowed"] = {name: list(values) for name, values in settings.allowed.items()}
    return vm if request.kind == GuestKind.QEMU else vm | {"kind": str(request.kind)}


def _action_members(request: RunRequest, settings: PlaybookSettings, *, is_ours: bool) -> dict[str, Any]:
    """Return the members of `vm` that only this action gets.

    A provider's action that replaces an action of Agent Smith gets the same members, except `resize`: this function
    returns no members for a provider's `resize`, which finds the sizes of the disks in `vm.properties`.
    """
    if request.action == "create":
        return extra_vars.members_for_create(request, settings)
    if request.action == "update":
        return extra_vars.members_for_update(request, settings)
    if request.action == "resize" and is_ours:
        return extra_vars.members_for_resize(read_properties(request.properties))
    if request.action == "backup" and is_ours and not settings.backup_storage:
        raise JobError(ErrorCode.INVALID_REQUEST, "a backup needs PROXMOX_BACKUP_STORAGE, which is not set")
    members_by_action: dict[str, dict[str, Any]] = {
        "snapshot": {"snapshot": request.snapshot},  # the name of the new snapshot
        "backup": {"backup_storage": settings.backup_storage},
        "migrate": {"target_node": request.target_node},
        "delete": _delete_members(request, settings),
    }
    members = members_by_action.get(request.action, {})
    return {name: value for name, value in members.items() if value not in ("", False)}


def _delete_members(request: RunRequest, settings: PlaybookSettings) -> dict[str, Any]:
    """Return the members of `vm` for `delete`. The caller removes the members that are '' or False."""
    return {
        # how many seconds the VM is kept (stopped and marked for deletion) before its deletion; '': delete it at once
        "grace_s": int(settings.delete_grace_s) or "",
        # delete the VM only if it is marked for deletion and its grace period has ended
        "only_when_due": request.only_if_grace_period_ended,
        "half_made": request.may_be_partial_clone,  # the VM may be a partial clone, which has no marker
        "final_backup": settings.backup_storage if settings.makes_final_backup else "",
        "purge": settings.purges_deleted_vms,
        "remove_volumes_left": settings.removes_remaining_volumes,  # remove volumes that outlive the deleted VM
    }
