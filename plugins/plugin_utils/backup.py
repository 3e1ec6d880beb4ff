# SPDX-License-Identifier: Apache-2.0
"""The step that backs up a guest to an archive, and the checks before this step."""

from __future__ import annotations

from . import node_limits, preconditions, request
from .identity import kind_of
from .steps import Step
from .vm_action import Facts, VmAction


def require_backup_possible(action: VmAction, facts: Facts, storage: str, *, is_stopped_before: bool = False) -> None:
    """Raise Refused if the guest cannot be backed up to this storage.

    To back up a stopped VM, Proxmox starts the VM, so the node must have enough CPUs for the VM. A VM is stopped during
    the backup if it does not run now, if the action stops it before (`is_stopped_before`), or if the backup mode is
    `stop`.
    """
    action.refuse(preconditions.backup_problem(facts, action.vm, storage))
    action.refuse(node_limits.backup_problem(action.cluster, facts["node"], storage, int(action.vm["vmid"])))
    is_started = is_stopped_before or facts["status"] != "running" or action.vm.get("backup_mode") == "stop"
    if is_started and kind_of(action.vm) == "qemu":
        vcpus = facts["cores"] * facts["sockets"]
        action.refuse(node_limits.vcpus_problem(action.cluster, facts["node"], vcpus))


def ensure_backup(action: VmAction, facts: Facts, before: Facts, storage: str) -> Step:
    """Make a new archive of the guest.

    `before` contains the facts before the backup; its member `backups` lists the archives that existed then.
    """
    require_backup_possible(action, facts, storage)
    if action.is_check_mode:
        return Step(facts=facts, is_changed=True)
    action.progress.step(f"backing up to the storage {storage}")
    # Without `remove=0`, Proxmox would remove archives of this VMID by the storage's retention, also archives of a
    # former guest of another service. The module proxmox_backup cannot send `remove`, so the action sends this request
    # itself.
    answer = request.send(
        action,
        "POST",
        f"nodes/{facts['node']}/vzdump",
        vmid=action.vm["vmid"],
        storage=storage,
        mode=action.vm.get("backup_mode") or "snapshot",
        compress="zstd",
        remove=0,
        **{"notes-template": preconditions.backup_notes(action.vm)},
    )
    action.refuse(preconditions.backup_start_problem(facts, answer))
    after = action.look_up_after(facts, "idle", "backed_up", backup_storage=storage)
    action.verify(preconditions.backup_outcome_problem(after, before, answer))
    return Step(facts=after, is_changed=True, upids=after["upids"])
