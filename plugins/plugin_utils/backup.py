# SPDX-License-Identifier: Apache-2.0
"""Checks whether a backup of a guest is possible, and backs the guest up to an archive."""

from __future__ import annotations

from . import node_limits, preconditions, request
from .identity import kind_of
from .steps import StepResult
from .vm_action import Facts, VmAction


def require_backup_possible(
    plugin: VmAction, facts: Facts, storage: str, *, is_stopped_by_plugin: bool = False
) -> None:
    """Raise Refused if the guest cannot be backed up to this storage.

    `preconditions.backup_problem` checks the request and the guest's lock, `node_limits.backup_problem` the storage.
    To back up a stopped VM, Proxmox starts it, so the node must have enough CPUs for the VM. The VM is stopped at the
    beginning of its backup in three cases: the VM does not run now, the action plugin stops the VM before the backup
    (`is_stopped_by_plugin`), or the backup mode is `stop`.
    """
    plugin.refuse_if(preconditions.backup_problem(facts, plugin.vm, storage))
    plugin.refuse_if(node_limits.backup_problem(plugin.cluster, facts["node"], storage, int(plugin.vm["vmid"])))
    is_started_by_backup = (
        is_stopped_by_plugin or facts["status"] != "running" or plugin.vm.get("backup_mode") == "stop"
    )
    if is_started_by_backup and kind_of(plugin.vm) == "qemu":
        vcpus = facts["cores"] * facts["sockets"]
        plugin.refuse_if(node_limits.vcpus_problem(plugin.cluster, facts["node"], vcpus))


def make_backup(plugin: VmAction, facts: Facts, facts_before: Facts, storage: str) -> StepResult:
    """Make a new archive of the guest.

    `facts` are the facts of the last look-up. `facts_before` are the facts of an earlier look-up; their member
    `backups` lists the archives before the backup.
    """
    require_backup_possible(plugin, facts, storage)
    if plugin.is_check_mode:
        return StepResult(facts=facts, is_changed=True)
    plugin.progress.write_line(f"backing up to the storage {storage}")
    # Without `remove=0`, Proxmox would apply the storage's retention to all archives of this VMID, and could remove the
    # archives of a deleted guest of another service that had this VMID. The module proxmox_backup cannot send
    # `remove`, so `request.send` sends this HTTP request.
    answer = request.send(
        plugin,
        "POST",
        f"nodes/{facts['node']}/vzdump",
        vmid=plugin.vm["vmid"],
        storage=storage,
        mode=plugin.vm.get("backup_mode") or "snapshot",
        compress="zstd",
        remove=0,
        **{"notes-template": preconditions.backup_notes(plugin.vm)},
    )
    # If the guest has moved to another node, Proxmox answers OK but starts no backup.
    plugin.refuse_if(preconditions.backup_start_problem(facts, answer))
    # `idle`: wait until the Proxmox task of the backup has succeeded. The wait also ends if the task fails. `change`
    # names the change.
    after = plugin.look_up_after_change(facts, "idle", change="backed_up", backup_storage=storage)
    plugin.fail_on_outcome_problem(preconditions.backup_outcome_problem(after, facts_before, answer))
    return StepResult(facts=after, is_changed=True, upids=after["upids"])
