# SPDX-License-Identifier: Apache-2.0
"""Builds the result document of an action plugin: the value `vm_result` (docs/custom-actions.md). Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .configuration import is_restart_needed
from .deletion import deletion_due_at


def result_document(
    facts: dict[str, Any], vm: dict[str, Any], earlier_addresses: Iterable[str] = (), **members: Any
) -> dict[str, Any]:
    """Return the result document of an action plugin.

    `facts` is the state of the guest, as read from Proxmox. `vm` is the extra var of every playbook: it contains the
    VMID and the requested values of the guest.
    `earlier_addresses` contains the IP addresses that the guest reported before the change. They are used if the guest
    reports none now. `members` contains the members that the plugin sets, such as `changed` and `upids`. The
    member `planned` has the changes that the plugin would make without check mode; it is left out if it is empty.
    """
    exists = facts["exists"]
    if not members.get("planned"):
        members.pop("planned", None)
    return {
        "vmid": int(vm["vmid"]),
        "node": str(facts["node"] or vm.get("node") or ""),
        "name": str(facts["name"] or vm["name"]),
        "status": facts["status"] if facts["status"] in ("running", "absent") else "stopped",
        "mac_address": facts["mac_address"],
        "ip_addresses": facts["ip_addresses"] or (list(earlier_addresses) if exists else []),
        "cores": facts["cores"] * facts["sockets"] if exists else 0,
        "memory_mib": facts["memory_mib"] if exists else 0,
        "disk_gib": facts["disk_gib"] if exists else 0,
        "tags": facts["tags"],
        "changed": False,
        "adopted": False,
        # The time from which the VM may be destroyed, in seconds since 1970. 0: no deletion is scheduled.
        "delete_at": deletion_due_at(facts),
        "reboot_required": is_restart_needed(facts),
        "upids": [],
        **members,
    }
