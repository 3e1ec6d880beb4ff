# SPDX-License-Identifier: Apache-2.0
"""Decides the next step of a deletion, which may have a grace period.

`vm` is the request: the extra var of every playbook (docs/actions.md). `facts` are a guest's facts, as `LookUp.run`
returns them. A function whose name ends in `_problem` returns `CODE: reason`, or an empty text if there is no problem.
All functions are pure.
"""

from __future__ import annotations

import re
from typing import Any

from .identity import identity_members
from .request_values import is_yes

#: The deletion mark of a VM: a tag that states when the VM may be destroyed, in seconds since 1970.
DELETION_TAG = re.compile(r"smith-delete-(\d{1,12})")
#: The member that an action adds to the request after Proxmox has refused a tag. The VM's tags are then not changed.
WITHOUT_TAGS = "without_tags"
#: The deletion mark as a line of the description, by the kind of guest. A container's mark is a line, because a
#: container can have only one tag. A VM's mark is a line only if Proxmox refuses the tags of the VM. For a VM,
#: the line has another name: earlier versions did not remove a line `smith-delete` from the text of a service, so this
#: line in the description of a VM may be text of a service instead of a mark.
DELETION_LINES = {
    "lxc": re.compile(r"^smith-delete=(\d{1,12})\s*?$", re.MULTILINE),
    "qemu": re.compile(r"^smith-delete-at=(\d{1,12})\s*?$", re.MULTILINE),
}


def deletion(facts: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return the next step of a deletion as `step`, and as `at` the time from which the VM may be destroyed.

    Without a grace period the step is `destroy`. With a grace period it is first `mark`, then `wait` until the time
    `at` has come, then `destroy`. The time is stored in the VM's deletion mark: operators see the mark, and it is not
    lost with the agent's database. After an operator has removed the mark, a `delete` with `only_when_due` has
    the step `keep`.
    """
    at = deletion_due_at(facts) if facts["exists"] else 0
    is_due = 0 < at <= facts.get("looked_at", 0)
    if facts["exists"] and is_yes(vm.get("only_when_due", False)):
        return {"step": "destroy" if is_due else "wait" if at else "keep", "at": at}
    if not facts["exists"] or not int(vm.get("grace_s") or 0):
        return {"step": "destroy", "at": 0}
    if not at:
        return {"step": "mark", "at": facts["looked_at"] + int(vm["grace_s"])}
    return {"step": "destroy" if is_due else "wait", "at": at}


def ha_managed_problem(facts: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return why Proxmox would refuse to delete the stopped guest: the HA manager manages it."""
    if not facts["exists"] or not facts["is_ha_managed"] or is_yes(vm.get("purge", False)):
        return ""
    return f"VM_STATE: the HA manager manages VM {facts['vmid']}: remove the VM from HA, or set purge in the request"


def deletion_due_at(facts: dict[str, Any]) -> int:
    """Return when the VM may be destroyed, in seconds since 1970; 0 if it is not marked for deletion."""
    tags = filter(None, map(DELETION_TAG.fullmatch, facts["tags"] if facts["kind"] == "qemu" else ()))
    return max((int(match.group(1)) for match in (*_deletion_lines(facts), *tags)), default=0)


def current_deletion_line(facts: dict[str, Any]) -> str:
    """Return the line of the guest's description with its deletion mark; '' if it has none, or if the mark is a tag."""
    lines = [match.group(0).strip() + "\n" for match in _deletion_lines(facts)]
    return max(lines, key=lambda line: int(line.partition("=")[2]), default="")


def requested_deletion_line(vm: dict[str, Any]) -> str:
    """Return the line with the requested deletion mark; '' if none is requested, or if the mark is a tag."""
    if not vm.get("delete_at"):
        return ""
    if vm.get("kind") == "lxc":
        return f"smith-delete={vm['delete_at']}\n"
    return f"smith-delete-at={vm['delete_at']}\n" if vm.get(WITHOUT_TAGS) else ""


def _deletion_lines(facts: dict[str, Any]) -> list[re.Match[str]]:
    pattern = DELETION_LINES.get(facts["kind"])
    return list(pattern.finditer(str(facts["config"].get("description") or ""))) if pattern else []


def deletion_mark_request(vm: dict[str, Any], at: int) -> dict[str, Any]:
    """Return a request that only marks the VM for deletion at the time `at`."""
    return {**identity_members(vm), "delete_at": at}
