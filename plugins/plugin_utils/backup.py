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

    `facts` is a dictionary of what Proxmox returned about the guest. `plugin.vm` is the playbook's variable `vm`: the
    guest, and the requested change of it.

    `preconditions.backup_problem` checks the requested backup mode, whether the provider allows a backup to the
    storage, and whether the guest is locked or suspended.
    `node_limits.backup_problem` checks the storage.

    In three cases Proxmox starts the VM for the backup, so the node must have enough CPUs for the VM: the VM does not
    run now, the action plugin stops the VM before the backup (`is_stopped_by_plugin`), or the backup mode is `stop`.
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

    `facts` is what Proxmox returned about the guest last. The member `backups` of `facts_before` lists the archives
    that existed before the backup.
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
    # `idle`: wait until the Proxmox task of the backup has succeeded or failed. If the answer was lost, the UPID of
    # this Proxmox task is unknown. Then the Proxmox task is found by its type: for the `change_result` "backed_up", the
    # type is `vzdump`. With `backup_storage`, the facts list the guest's archives on this storage.
    after = plugin.look_up_after_change(facts, "idle", change_result="backed_up", backup_storage=storage)
    plugin.fail_on_outcome_problem(preconditions.backup_outcome_problem(after, facts_before, answer))
    return StepResult(facts=after, is_changed=True, upids=after["upids"])
