# SPDX-License-Identifier: Apache-2.0
"""Decides the next step of a deletion, which may have a grace period.

`vm` is the request: the extra var of every playbook (docs/actions.md). `facts` contains the status, the configuration
and other data of a guest, as read from Proxmox. A function whose name ends in `_problem` returns `CODE: reason`, or an
empty text if there is no problem. All functions are pure.
"""

from __future__ import annotations

import re
from typing import Any

from .identity import identity_members
from .request_values import is_yes

#: Matches the deletion mark of a VM: a tag with the time from which the VM may be destroyed, in seconds since 1970. The
#: mark is independent of the VM's marker, which has the service's id.
DELETION_TAG = re.compile(r"smith-delete-(\d{1,12})")
#: The member that an action plugin adds to the request `vm` after Proxmox has refused a tag. A request with this member
#: leaves the guest's tags unchanged.
TAGS_REFUSED_MEMBER = "without_tags"
#: The deletion mark as a line of the description, by the kind of guest. A container's mark is always a line, because
#: the Ansible module for containers can set only one tag. A VM's mark is a line only if Proxmox refuses the tags of the
#: VM. A VM's line is not named `smith-delete`, because earlier versions of Agent Smith let a customer write a line of
#: this name into the description of a VM. The customer's line must not count as a mark.
DELETION_LINES = {
    "lxc": re.compile(r"^smith-delete=(\d{1,12})\s*?$", re.MULTILINE),
    "qemu": re.compile(r"^smith-delete-at=(\d{1,12})\s*?$", re.MULTILINE),
}


def next_deletion_step(facts: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return `step`, the next step of a deletion, and `delete_at`, the time from which the VM may be destroyed.

    Without a grace period, or if the VM does not exist, the step is `destroy`. With a grace period it is first `mark`,
    then `wait` until the time `delete_at`, then `destroy`. The time is stored in the VM's deletion mark: operators see
    the mark, and it is not lost with the agent's database.

    After the grace period, the agent runs the playbook again, with `only_when_due` in the request. This run destroys
    the VM only if the VM has a mark and the time `delete_at` has passed. Without a mark the step is `keep`: an operator
    has removed the mark to keep the VM. The fact `looked_at` is the time at which the facts were read.
    """
    delete_at = deletion_due_at(facts) if facts["exists"] else 0
    is_due = 0 < delete_at <= facts.get("looked_at", 0)
    if facts["exists"] and is_yes(vm.get("only_when_due", False)):
        return {"step": "destroy" if is_due else "wait" if delete_at else "keep", "delete_at": delete_at}
    if not facts["exists"] or not int(vm.get("grace_s") or 0):
        return {"step": "destroy", "delete_at": 0}
    if not delete_at:
        return {"step": "mark", "delete_at": facts["looked_at"] + int(vm["grace_s"])}
    return {"step": "destroy" if is_due else "wait", "delete_at": delete_at}


def ha_managed_problem(facts: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return a problem if Proxmox would refuse the deletion because the HA manager manages the guest; '' if not.

    With `purge` in the request, Proxmox does not refuse the deletion, and removes the guest from HA.
    """
    if not facts["exists"] or not facts["is_ha_managed"] or is_yes(vm.get("purge", False)):
        return ""
    return f"VM_STATE: the HA manager manages VM {facts['vmid']}: remove the VM from HA, or set purge in the request"


def deletion_due_at(facts: dict[str, Any]) -> int:
    """Return the time from which the VM may be destroyed, in seconds since 1970; 0 if the VM has no deletion mark."""
    tags = filter(None, map(DELETION_TAG.fullmatch, facts["tags"] if facts["kind"] == "qemu" else ()))
    return max((int(match.group(1)) for match in (*_deletion_lines(facts), *tags)), default=0)


def current_deletion_line(facts: dict[str, Any]) -> str:
    """Return the line of the guest's description that is its deletion mark; '' if there is no such line."""
    lines = [match.group(0).strip() + "\n" for match in _deletion_lines(facts)]
    return max(lines, key=lambda line: int(line.partition("=")[2]), default="")


def requested_deletion_line(vm: dict[str, Any]) -> str:
    """Return the requested deletion mark as a line; '' if no mark is requested, or if the mark will be a tag."""
    if not vm.get("delete_at"):
        return ""
    if vm.get("kind") == "lxc":
        return f"smith-delete={vm['delete_at']}\n"
    return f"smith-delete-at={vm['delete_at']}\n" if vm.get(TAGS_REFUSED_MEMBER) else ""


def _deletion_lines(facts: dict[str, Any]) -> list[re.Match[str]]:
    pattern = DELETION_LINES.get(facts["kind"])
    return list(pattern.finditer(str(facts["config"].get("description") or ""))) if pattern else []


def deletion_mark_request(vm: dict[str, Any], delete_at: int) -> dict[str, Any]:
    """Return a request that only marks the VM for deletion at the time `delete_at`."""
    return {**identity_members(vm), "delete_at": delete_at}
