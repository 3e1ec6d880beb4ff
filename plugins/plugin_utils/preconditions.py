# SPDX-License-Identifier: Apache-2.0
"""Decides whether a power change, a snapshot, a backup or a migration is possible, and whether a backup succeeded.

`vm` is the request: the extra var of every playbook (docs/actions.md). `facts` contains the status, the configuration
and other data of a guest, as read from Proxmox. A function whose name ends in `_problem` returns `CODE: reason`, or an
empty text if there is no problem. `ha_problem` reports the HA state `error`, `lock_problem` a lock or an incomplete
deletion, and `suspended_problem` a hibernated VM. All functions are pure.
"""

from __future__ import annotations

import re
from typing import Any

from . import allowed
from .deletion import deletion_due_at
from .failures import outcome_problem
from .identity import SMITH_TAG, ha_problem, kind_of, lock_problem, suspended_problem
from .request_values import is_yes
from .shared.marker import marker_for

#: Matches the name of a snapshot that Proxmox accepts.
SNAPSHOT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{1,39}")


def power_problem(facts: dict[str, Any], state: str) -> str:
    """Return why the VM cannot be brought into `state` now: `running`, `stopped` or `restarted`."""
    if state == "restarted" and facts["status"] != "running":
        return f"VM_NOT_RUNNING: VM {facts['vmid']} is {facts['status']}"
    if state == "running" and deletion_due_at(facts):
        return f"VM_STATE: VM {facts['vmid']} is marked for deletion; an update with cancel_deletion removes the mark"
    return ha_problem(facts) or lock_problem(facts)


def snapshot_name(facts: dict[str, Any], requested_name: str, state: str) -> str:
    """Return the name of the snapshot to create or to roll back to.

    `state` is `rolled_back` for a rollback. If no name is requested, a rollback uses the newest complete snapshot, and
    a creation uses the first free name of `smith-1`, `smith-2` and so on. So if a run is repeated before the snapshot
    exists, the second run uses the same name.
    """
    if requested_name:
        return str(requested_name)
    if state == "rolled_back":
        return (complete_snapshots(facts) or [""])[-1]
    names = list(_snapstate_by_name(facts))
    return next(name for number in range(1, len(names) + 2) if (name := f"{SMITH_TAG}-{number}") not in names)


def complete_snapshots(facts: dict[str, Any]) -> list[str]:
    """Return the names of the guest's snapshots that are neither being made nor being deleted, oldest first."""
    return [name for name, snapstate in _snapstate_by_name(facts).items() if not snapstate]


def _snapstate_by_name(facts: dict[str, Any]) -> dict[str, str]:
    """Return Proxmox's `snapstate` of each snapshot, by the snapshot's name. The facts contain it as `unfinished`.

    It is '' for a complete snapshot, `prepare` while Proxmox creates the snapshot, `delete` while Proxmox deletes it.
    """
    return {str(snapshot["name"]): str(snapshot["unfinished"]) for snapshot in facts.get("snapshots") or []}


def snapshot_problem(facts: dict[str, Any], name: str, state: str) -> str:
    """Return why the snapshot `name` cannot be created, or why the guest cannot be rolled back to it; '' if it can.

    A rollback to a snapshot that does not exist is a problem, because old versions of the module proxmox_snap report
    success for this rollback. If the snapshot is not complete, Proxmox may be creating or deleting it, so the problem
    has the code VM_LOCKED, after which the agent retries the job.
    """
    if snapstate := _snapstate_by_name(facts).get(name):
        command = f"qm delsnapshot {facts['vmid']} {name} --force"
        remedy = f"if no Proxmox task creates or deletes the snapshot now, remove it with `{command}`"
        return f"VM_LOCKED: snapshot {name} of VM {facts['vmid']} is not complete ({snapstate}): {remedy}"
    if state == "rolled_back":
        is_complete = name and name in complete_snapshots(facts)
        return "" if is_complete else f"NOT_FOUND: VM {facts['vmid']} has no snapshot {name}".rstrip()
    if not SNAPSHOT_NAME.fullmatch(name):
        return "INVALID_REQUEST: a snapshot's name must start with a letter and have 2 to 40 letters, digits, - and _"
    return ""


def snapshots_unsupported_error(facts: dict[str, Any]) -> str:
    """Return the error text to use after Proxmox has answered that the guest cannot have snapshots.

    The text names `snapshot`, the property of the job. Tenants read the text without the part in parentheses.
    """
    disks = ", ".join(f"{key} on {disk['storage']}" for key, disk in sorted(facts["disks"].items()))
    return f"VM_STATE: property snapshot: the storage or the format of a disk supports no snapshots ({disks})"


def backup_problem(facts: dict[str, Any], vm: dict[str, Any], storage: str) -> str:
    """Return why a backup to this storage is impossible or not allowed by the provider; '' if it is possible."""
    if not storage:
        return "INVALID_REQUEST: a backup needs backup_storage"
    if problem := allowed.backup_problem(vm, storage):
        return problem
    if vm.get("backup_mode") and vm["backup_mode"] not in ("snapshot", "suspend", "stop"):
        return "INVALID_REQUEST: backup_mode must be snapshot, suspend or stop"
    return lock_problem(facts) or suspended_problem(facts)


def backup_notes(vm: dict[str, Any]) -> str:
    """Return the text from which Proxmox makes an archive's notes: the guest's name and the marker.

    The marker shows whose guest an archive contains, because a VMID may belong to another service later. In the text,
    `{{guestname}}` stands for the guest's name, and `\\n` for a line end.
    """
    return rf"{{{{guestname}}}}\n{marker_for(str(vm['service_id']).lower())}"


def backup_start_problem(facts: dict[str, Any], answer: dict[str, Any]) -> str:
    """Return why Proxmox started no backup; '' if it started one.

    If the guest is on another node, Proxmox answers OK and starts no Proxmox task.
    """
    if answer.get("data") != "OK":
        return ""
    return f"PVE_CONFLICT: VM {facts['vmid']} is not on node {facts['node']} any more, so no backup was started"


def new_archive(facts_after: dict[str, Any], facts_before: dict[str, Any]) -> str:
    """Return the archive that the facts after a backup contain and the facts before it do not; '' if there is none."""
    archives_before, archives_after = facts_before.get("backups") or [], facts_after.get("backups") or []
    return next((str(volume) for volume in reversed(archives_after) if volume not in archives_before), "")


def backup_outcome_problem(facts_after: dict[str, Any], facts_before: dict[str, Any], answer: dict[str, Any]) -> str:
    """Return why there is no new archive after a backup; '' if there is one. `answer` is Proxmox's answer.

    The fact `reached` is True if the Proxmox task of the backup has succeeded. If it is not True, `outcome_problem`
    returns the reason.
    """
    if not facts_after.get("reached"):
        return outcome_problem(facts_after, answer, wanted_state="backed up")
    if new_archive(facts_after, facts_before):
        return ""
    return "TASK_FAILED: Proxmox reported no error, but there is no new archive"


def migration_problem(facts: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return why a migration is impossible. If the VM is already on the target node, there is no problem."""
    target_node = str(vm.get("target_node") or "")
    if kind_of(vm) == "lxc":
        return "INVALID_REQUEST: no module of community.proxmox migrates a container"
    if not target_node or facts["node"] == target_node:
        return "" if target_node else "INVALID_REQUEST: a migration needs target_node"
    is_offline_migration_of_running_vm = facts["status"] == "running" and not is_yes(vm.get("online", True))
    problems = (
        (not facts["target"]["exists"], f"NOT_FOUND: no such cluster node '{target_node}'"),
        (not facts["target"]["is_online"], f"NODE_DOWN: node {target_node} is offline"),
        (
            is_offline_migration_of_running_vm,
            f"VM_STATE: VM {facts['vmid']} is running: stop it first, or migrate it online",
        ),
    )
    problem = next((text for is_problem, text in problems if is_problem), "")
    return problem or ha_problem(facts) or lock_problem(facts) or suspended_problem(facts)
