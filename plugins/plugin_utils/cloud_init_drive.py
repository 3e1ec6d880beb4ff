# SPDX-License-Identifier: Apache-2.0
"""Generates the cloud-init drive of a running VM again after its cloud-init values were changed.

Proxmox writes new cloud-init values into a running VM's configuration at once; they are never pending. But the VM's
cloud-init drive contains them only after Proxmox has started the VM again, or after a request to generate the drive.
Without this request, a guest that reboots by itself would read the old values from the drive. A guest reads the drive
only when it boots.
"""

from __future__ import annotations

from typing import Any

from . import cloud_init, request
from .client import REQUEST_ERRORS, error_text
from .failures import proxmox_failure
from .vm_action import Facts, Refused, VmAction

#: The exceptions after which the drive may lack the values.
FAILURES: tuple[type[Exception], ...] = (Refused, *REQUEST_ERRORS)


def update_drive(action: VmAction, facts: Facts, vm: dict[str, Any], changed_keys: set[str]) -> Facts:
    """Generate the drive of a running VM again if the drive lacks requested values.

    Return the facts, in which `cloud_init_pending` lists the keys whose values the drive lacked.

    `changed_keys` contains the keys of the cloud-init values that this action has changed or removed. If there are any,
    the drive lacks their values. Proxmox's list of these keys is not used then, because it omits a changed `ipconfigN`.
    If there are none, Proxmox's list is used: it contains the values that an interrupted run has changed.
    """
    requested = cloud_init.keys_in(cloud_init.requested_parameters(facts, vm)) | changed_keys
    if not requested or not facts["has_cloud_init"] or facts["status"] != "running":
        return facts
    stale_keys = changed_keys or requested & _keys_missing_in_drive(action, facts)
    if not stale_keys:
        return facts
    if not action.is_check_mode:
        _generate(action, facts, stale_keys)
    return {**facts, "cloud_init_pending": sorted(stale_keys)}


def _keys_missing_in_drive(action: VmAction, facts: Facts) -> set[str]:
    """Return the keys whose values the drive lacks, as Proxmox reports them."""
    return set(action.cluster.cloud_init_pending(facts["node"], facts["vmid"]))


def _generate(action: VmAction, facts: Facts, stale_keys: set[str]) -> None:
    """Generate the drive again, and verify that it has the values.

    A failure is only a warning: the VM has the requested configuration, and Proxmox generates the drive at the next
    start.
    """
    action.progress.step("generating the cloud-init drive again")
    try:
        answer = request.send(action, "PUT", f"nodes/{facts['node']}/qemu/{facts['vmid']}/cloudinit")
        missing = sorted(stale_keys & _keys_missing_in_drive(action, facts))
        problem = proxmox_failure(answer) if answer.get("failed") else f"the drive lacks {', '.join(missing)}"
    except FAILURES as exc:
        missing, problem = sorted(stale_keys), error_text(exc)
    if missing:
        action.warn(
            f"The cloud-init drive of VM {facts['vmid']} was not generated again ({problem}). "
            "Proxmox generates the drive when it starts the VM; a reboot inside the guest is not enough."
        )
