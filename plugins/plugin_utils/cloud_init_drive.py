# SPDX-License-Identifier: Apache-2.0
"""Generates the cloud-init drive of a running VM again after its cloud-init values were changed.

Proxmox writes new cloud-init values into a running VM's configuration at once, not as pending values. But Proxmox
writes them to the VM's cloud-init drive only when it starts the VM again, or when a request asks for a new drive.
Without this request, a guest that reboots by itself would read the old values from the drive. A guest reads the drive
only when it boots.
"""

from __future__ import annotations

from typing import Any

from . import cloud_init, request
from .client import REQUEST_ERRORS, error_text
from .failures import proxmox_failure
from .vm_action import Facts, Refused, VmAction

#: The exceptions after which the drive may lack the new values. `Refused` means that Proxmox refused the request, or
#: that it was not sent, because ansible-playbook was killed, the agent lost its leases, or the plugin's time limit was
#: reached.
DRIVE_ERRORS: tuple[type[Exception], ...] = (Refused, *REQUEST_ERRORS)


def update_drive(plugin: VmAction, facts: Facts, vm: dict[str, Any], changed_keys: set[str]) -> Facts:
    """Generate the drive of a running VM again if the drive lacks requested values.

    Return the VM's facts. Their list `cloud_init_pending` contains the keys whose values the drive lacked. These values
    wait for the next boot of the guest; they are not pending values of Proxmox.

    `vm` is the playbook's variable with the requested values of the VM (docs/actions.md). `changed_keys` contains the
    keys of the cloud-init values that the action plugin has changed or removed. The drive lacks the values of these
    keys. If `changed_keys` is empty, Proxmox's list of the keys that the drive lacks decides whether the drive is
    generated: an interrupted earlier run may have changed values. Otherwise `changed_keys` decides, because the list
    omits a changed `ipconfigN`.
    """
    requested_keys = cloud_init.config_keys_of(cloud_init.requested_parameters(facts, vm)) | changed_keys
    if not requested_keys or not facts["has_cloud_init"] or facts["status"] != "running":
        return facts
    stale_keys = changed_keys or requested_keys & _keys_missing_in_drive(plugin, facts)
    if not stale_keys:
        return facts
    if not plugin.is_check_mode:
        _generate_drive(plugin, facts, stale_keys)
    return {**facts, "cloud_init_pending": sorted(stale_keys)}


def _keys_missing_in_drive(plugin: VmAction, facts: Facts) -> set[str]:
    """Return the keys whose values the drive lacks, as Proxmox reports them."""
    return set(plugin.cluster.outdated_cloud_init_keys(facts["node"], facts["vmid"]))


def _generate_drive(plugin: VmAction, facts: Facts, stale_keys: set[str]) -> None:
    """Generate the drive again, and verify that it has the values.

    If Proxmox does not generate the drive, only warn: the VM has the requested configuration, and Proxmox generates the
    drive at the VM's next start.
    """
    plugin.progress.write_line("generating the cloud-init drive again")
    try:
        answer = request.send(plugin, "PUT", f"nodes/{facts['node']}/qemu/{facts['vmid']}/cloudinit")
        missing_keys = sorted(stale_keys & _keys_missing_in_drive(plugin, facts))
        problem = proxmox_failure(answer) if answer.get("failed") else f"the drive lacks {', '.join(missing_keys)}"
    except DRIVE_ERRORS as exc:
        missing_keys, problem = sorted(stale_keys), error_text(exc)
    if missing_keys:
        plugin.warn(
            f"The cloud-init drive of VM {facts['vmid']} was not generated again ({problem}). "
            "Proxmox generates the drive when it starts the VM; a reboot inside the guest is not enough."
        )
