# SPDX-License-Identifier: Apache-2.0
"""Adds, moves and grows the disks of a VM, one by one."""

from __future__ import annotations

from typing import Any

from . import disks, node_limits, volumes
from .vm_action import Facts, VmAction

#: The maximum time for which the module proxmox_disk waits for the change of one disk.
DISK_TIMEOUT_S = 120
#: The verb in the progress line about a call of the module proxmox_disk, by the value of its parameter `state`.
DISK_VERBS = {"present": "adding", "moved": "moving", "resized": "growing"}


def move_problem(plugin: VmAction, facts: Facts, disk_module_parameters: list[dict[str, Any]]) -> str:
    """Return a problem if Proxmox would refuse to move a disk because a snapshot needs its volume; '' if not.

    `disk_module_parameters` contains the parameters of each call of the module proxmox_disk. A `step` is the
    parameters of one call.
    """
    disks_to_move = [step["disk"] for step in disk_module_parameters if step["state"] == "moved"]
    volumes_in_snapshots = (
        volumes.snapshot_volumes(plugin.cluster, facts["node"], facts["vmid"]) if disks_to_move else set()
    )
    disk = next(
        (disk for disk in disks_to_move if str(facts["config"][disk]).partition(",")[0] in volumes_in_snapshots), ""
    )
    if not disk:
        return ""
    return f"VM_STATE: VM {facts['vmid']} has snapshots of {disk}, so the disk cannot be moved to another storage"


def change_disks(plugin: VmAction, facts: Facts, disk_module_parameters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add, move or grow disks one by one; return the answers of the module.

    `disk_module_parameters` contains the parameters of each call of the module (`disks.disk_module_parameters`).
    """
    answers = []
    for step in disk_module_parameters:
        plugin.progress.write_line(
            f"{DISK_VERBS[step['state']]} the disk {step['disk']}: {disks.describe_disk_step(step)}"
        )
        answers.append(_change_disk(plugin, facts, step))
    return answers


def _change_disk(plugin: VmAction, facts: Facts, step: dict[str, Any]) -> dict[str, Any]:
    """Add, move or grow one disk: execute the module proxmox_disk with `plugin.change_with_module`.

    `plugin.change_with_module` raises Refused if the module failed and has certainly not made its change. The module
    waits for the Proxmox task and reports the error of this task. `node_limits.disk_format` returns `qcow2` for a
    storage that stores disks as files, because a raw disk on such a storage cannot have snapshots. For any other
    storage it returns None. A parameter that is None is not given to the module.
    """
    is_move, is_resize = step["state"] == "moved", step["state"] == "resized"
    return plugin.change_with_module(
        "proxmox_disk",
        state=step["state"],
        vmid=facts["vmid"],
        disk=step["disk"],
        size=step.get("size"),
        format=None if is_resize else node_limits.disk_format(plugin.cluster, facts["node"], step["storage"]),
        storage=step["storage"] if step["state"] == "present" else None,
        target_storage=step["storage"] if is_move else None,
        delete_moved=True if is_move else None,  # delete the volume on the old storage after the move
        timeout=plugin.time_left_s(DISK_TIMEOUT_S),  # until the action plugin's deadline, at most DISK_TIMEOUT_S
    )
