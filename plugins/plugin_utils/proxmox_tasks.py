# SPDX-License-Identifier: Apache-2.0
"""Interprets the Proxmox tasks that Proxmox lists. Pure functions."""

from __future__ import annotations

import re
from typing import Any

#: The types of the Proxmox tasks that a change creates, by the change and the kind of guest. The types `ha…` are those
#: of a guest that the HA manager starts, stops or migrates. A change without a row creates no Proxmox task.
TASK_TYPES: dict[tuple[str, str], tuple[str, ...]] = {
    ("cloned", "qemu"): ("qmclone",),
    ("created", "qemu"): ("qmcreate",),
    ("created", "lxc"): ("vzcreate",),
    ("configured", "qemu"): ("qmconfig", "qmmove", "resize"),
    ("running", "qemu"): ("qmstart", "hastart"),
    ("running", "lxc"): ("vzstart", "hastart"),
    ("stopped", "qemu"): ("qmshutdown", "hastop"),
    ("stopped", "lxc"): ("vzshutdown", "hastop"),
    ("restarted", "qemu"): ("qmreboot", "qmreset"),
    ("restarted", "lxc"): ("vzshutdown", "hastop", "vzstart", "hastart"),  # the action stops and starts a container
    ("migrated", "qemu"): ("qmigrate", "hamigrate"),
    ("snapshot", "qemu"): ("qmsnapshot",),
    ("snapshot", "lxc"): ("vzsnapshot",),
    ("rolled_back", "qemu"): ("qmrollback",),
    ("rolled_back", "lxc"): ("vzrollback",),
    ("backed_up", "qemu"): ("vzdump",),
    ("backed_up", "lxc"): ("vzdump",),
    ("absent", "qemu"): ("qmdestroy",),
    ("absent", "lxc"): ("vzdestroy",),
}
#: A VMID in a line of a clone task's log, in one of two groups.
_NAMED_VMID = re.compile(r"\bID (\d+)\b|\bvm-(\d+)-")

#: A line of a qmdestroy task's log about a disk that Proxmox could not remove. Proxmox 8 ends such a task with OK,
#: Proxmox 9 with WARNINGS; the VM is destroyed in both cases.
_KEPT_VOLUME = re.compile(r"Could not remove disk '([^']+)'")


def task_types(change: str, kind: str) -> tuple[str, ...]:
    """Return the types of the Proxmox tasks that a change of a guest of this kind creates."""
    return TASK_TYPES.get((change, kind), ())


def newest_first(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort Proxmox tasks by their start time in seconds, then by `pstart`, their start time in clock ticks."""
    return sorted(tasks, key=lambda task: (int(task.get("starttime") or 0), int(task.get("pstart") or 0)), reverse=True)


def is_running(task: dict[str, Any]) -> bool:
    """Return True for a running Proxmox task, which has no status or the status RUNNING."""
    return task.get("status") in (None, "", "RUNNING")


def failed(task: dict[str, Any]) -> bool:
    """Return True for a finished Proxmox task whose status is neither OK nor WARNINGS."""
    return not is_running(task) and not re.match(r"OK\b|WARN", str(task["status"]))


def vmids_in(log: list[str]) -> set[int]:
    """Return the VMIDs that the log of a clone task names.

    Proxmox 9 logs `creating a clone of VM … with ID …`. Proxmox 8 logs only the names of volumes, such as
    `vm-123-disk-0`, and with some storages none. Other numbers in a log are sizes and percentages.
    """
    return {int(vmid) for line in log for pair in _NAMED_VMID.findall(line) for vmid in pair if vmid}


def volumes_left_in(log: list[str]) -> list[str]:
    """Return the volumes that a qmdestroy task could not remove, by its log."""
    return [volume for line in log for volume in _KEPT_VOLUME.findall(line)]
