# SPDX-License-Identifier: Apache-2.0
"""Decides whether a guest belongs to the service of the request.

`vm` is the request: the extra var of every playbook (docs/actions.md). `facts` contains the status, the configuration
and other data of a guest, as read from Proxmox. A function whose name ends in `_problem` returns `CODE: reason`, or an
empty text if there is no problem. All functions are pure.
"""

from __future__ import annotations

import re
from typing import Any

from .guest_facts import CREATION_LOCKS
from .request_values import is_yes

#: The tag of every VM that serves a service.
SMITH_TAG = "smith"
#: The tag of a VM whose service has requested Proxmox's protection flag. If only an operator has set the flag, the VM
#: does not have this tag.
PROTECTED_TAG = "smith-protected"
#: If Proxmox refuses the VM's tags, the VM's description contains this line instead of the tag PROTECTED_TAG.
PROTECTED_LINE = "smith-protected=1\n"
#: The HA state of a guest that the HA manager has failed to start, stop or move.
HA_ERROR = "error"
UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def identity_problem(facts: dict[str, Any], vm: dict[str, Any], may_be_absent: bool = False) -> str:
    """Return why the request must not change the VM; '' if it may.

    Set `may_be_absent` for a deletion. Then an absent VM and a partial clone are accepted, but a protection flag is a
    problem even if the service has requested the flag. The member `half_made` of the request means that the VM may be a
    partial clone.
    """
    vmid, is_same_kind = vm["vmid"], facts["exists"] and facts["kind"] == kind_of(vm)
    belongs_to_service = facts["exists"] and (is_marked(facts, vm) or (may_be_absent and is_partial_clone(facts, vm)))
    if not UUID.fullmatch(str(vm["service_id"])):
        return "INVALID_REQUEST: service_id is not a UUID"
    if not facts["exists"]:
        return absence_problem(facts, vmid, may_be_absent)
    if is_same_kind and is_unnamed_clone(facts) and is_yes(vm.get("half_made", False)):
        return lock_problem(facts)  # the change must wait until Proxmox has created the guest
    if is_same_kind and is_half_destroyed(facts):
        return half_destroyed_problem(facts)
    problems = (
        (not is_same_kind, f"VM_IDENTITY_MISMATCH: guest {vmid} is of kind {facts['kind']}, not {kind_of(vm)}"),
        (not belongs_to_service, f"VM_IDENTITY_MISMATCH: VM {vmid} ({facts['name']}) {_owner_text(facts)}"),
        (facts["name"] != vm["name"], f"VM_IDENTITY_MISMATCH: VM {vmid} is called {facts['name']}, not {vm['name']}"),
        (facts["is_template"], f"VM_PROTECTED: VM {vmid} is a template"),
        (
            is_protected_from_change(facts, is_deletion=may_be_absent),
            f"VM_PROTECTED: VM {vmid} has Proxmox's protection flag",
        ),
    )
    return next((text for is_problem, text in problems if is_problem), "")


def is_half_destroyed(facts: dict[str, Any]) -> bool:
    """Return True if an interrupted deletion has left only the lock `destroyed` in the guest's configuration.

    Proxmox sets this lock after it has removed the guest's disks, and before it removes the guest's access rights and
    backup jobs. If one of these last steps fails, Proxmox never removes the lock.
    """
    return bool(facts["exists"] and facts.get("lock") == "destroyed")


def half_destroyed_problem(facts: dict[str, Any]) -> str:
    """Return the problem of a guest whose deletion was interrupted, and the commands that an operator must run."""
    tool, kind = ("pct", "container") if facts["kind"] == "lxc" else ("qm", "VM")
    vmid = facts["vmid"]
    return (
        f"VM_HALF_DESTROYED: a deletion of {kind} {vmid} was interrupted: only the lock of the {kind} is left. On node "
        f"{facts['node']}, run `{tool} unlock {vmid}` and `{tool} destroy {vmid}`"
    )


def kind_of(vm: dict[str, Any]) -> str:
    """Return the requested kind of guest: `qemu` (virtual machine) or `lxc` (container)."""
    return str(vm.get("kind") or "qemu")


def is_marked(facts: dict[str, Any], vm: dict[str, Any]) -> bool:
    """Return True if the VM has the service's marker and no other marker."""
    return bool(facts["markers"] == [str(vm["service_id"]).lower()])


def is_partial_clone(facts: dict[str, Any], vm: dict[str, Any]) -> bool:
    """Return True if the VM is a partial clone: a `create` has made the VM, but has not yet set its marker.

    Only a VM of a request with the member `half_made` can be a partial clone. With `half_made`, the agent states that
    the VMID is reserved for the service, and that the `create` with this VMID has not succeeded. A partial clone has no
    marker, so its name identifies it: the name was reserved for this service alone.
    """
    return is_yes(vm.get("half_made", False)) and not facts["markers"] and facts["name"] == vm["name"]


def is_unnamed_clone(facts: dict[str, Any]) -> bool:
    """Return True if Proxmox is creating the guest and has not written the guest's name yet.

    A full clone has neither name nor description until its first drive is copied. If its VMID is reserved for the
    service, the clone belongs to the service.
    """
    return facts.get("lock") in CREATION_LOCKS and not facts["name"] and not facts["markers"]


def is_protected_from_change(facts: dict[str, Any], is_deletion: bool) -> bool:
    """Return True if Proxmox's protection flag of the VM forbids a deletion (`is_deletion`) or another change.

    A flag that an operator has set forbids every change. A flag that the service has requested forbids only the
    deletion, so an update can remove the flag. PROTECTED_TAG or PROTECTED_LINE shows that the service has requested
    the flag.
    """
    is_requested = PROTECTED_TAG in facts["tags"] or has_protected_line(facts)
    return bool(facts["is_protected"] and (is_deletion or not is_requested))


def has_protected_line(facts: dict[str, Any]) -> bool:
    """Return True if the guest's description has PROTECTED_LINE."""
    lines = str(facts["config"].get("description") or "").splitlines()
    return PROTECTED_LINE.strip() in [line.strip() for line in lines]


def absence_problem(facts: dict[str, Any], vmid: int, may_be_absent: bool) -> str:
    """Return the problem of a VM that was not found; '' if the VM does not exist and `may_be_absent` is true.

    The fact `absence` has the member `is_proven`: whether it is certain that the VM does not exist. If it is not
    certain, the members `code` and `text` say why, or are empty if nothing has checked whether the VM exists.
    """
    absence = facts["absence"]
    if not absence["is_proven"]:
        return f"{absence['code'] or 'PVE_PERMISSION'}: {absence['text'] or f'the token cannot see VM {vmid}'}"
    return "" if may_be_absent else f"VM_NOT_FOUND: VM {vmid} does not exist"


def reserved_vmid_problem(facts: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return why the service's guest cannot be created or adopted with this VMID; '' if it can.

    There is a problem if another guest has the VMID, or if an operator has set the protection flag of the service's
    guest. A guest without a marker is the service's partial clone if it has the requested name, because the name was
    reserved for this service alone.
    """
    if not UUID.fullmatch(str(vm["service_id"])):
        return "INVALID_REQUEST: service_id is not a UUID"
    if not facts["exists"]:
        return ""
    taken_problem = f"VM_ID_TAKEN: VMID {vm['vmid']} is held by {facts['name'] or 'a guest'} on {facts['node']}"
    if facts["kind"] != kind_of(vm) or facts["is_template"]:
        return taken_problem
    if is_unnamed_clone(facts):
        return ""
    if is_marked(facts, vm):
        return (
            f"VM_PROTECTED: VM {vm['vmid']} has Proxmox's protection flag"
            if is_protected_from_change(facts, is_deletion=False)
            else ""
        )
    return taken_problem if facts["markers"] or facts["name"] != vm["name"] else ""


def ha_problem(facts: dict[str, Any]) -> str:
    """Return a problem if the guest's HA state is `error`, in which the HA manager accepts no request; else ''."""
    if facts.get("ha_state") != HA_ERROR:
        return ""
    ha_resource = f"{'ct' if facts['kind'] == 'lxc' else 'vm'}:{facts['vmid']}"
    remedy = f"repair the guest, then `ha-manager set {ha_resource} --state disabled`"
    return f"VM_STATE: the HA manager has the resource {ha_resource} in the state error: {remedy}"


def lock_problem(facts: dict[str, Any]) -> str:
    """Return a problem if the VM is locked, so that a change must wait; '' if not.

    For the lock `suspended` of a hibernated VM, '' is returned: Proxmox does not remove this lock by itself, so no
    change waits for its removal. `suspended_problem` reports this lock.
    """
    if is_half_destroyed(facts):
        return half_destroyed_problem(facts)
    if facts.get("lock") and facts["lock"] != "suspended":
        return f"VM_LOCKED: VM is locked ({facts['lock']})"
    return ""


def suspended_problem(facts: dict[str, Any]) -> str:
    """Return a problem if the VM is hibernated, which Proxmox shows by the lock `suspended`; '' if not.

    Proxmox refuses every change of a hibernated VM except a start and a deletion.
    """
    if facts.get("lock") != "suspended":
        return ""
    return f"VM_STATE: VM {facts['vmid']} is hibernated (lock suspended): start it first"


def _owner_text(facts: dict[str, Any]) -> str:
    if not facts["markers"]:
        return "has no marker of Agent Smith"
    return f"has the marker of service {' and '.join(facts['markers'])}"


def identity_members(vm: dict[str, Any]) -> dict[str, Any]:
    """Return the members of a request that identify the VM."""
    return {key: vm[key] for key in ("service_id", "vmid", "name", "kind") if key in vm}
