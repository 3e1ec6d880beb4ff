# SPDX-License-Identifier: Apache-2.0
"""The documentation of the action plugin `vm_absent`. Its code is in `plugins/action/vm_absent.py`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_absent
short_description: A service's guest does not exist any more, or it is marked for a later deletion
version_added: 0.1.0
author: Agent Smith contributors (@agent-smith)
description:
  - Stops the guest. With a grace period, it then marks the guest for a later deletion. Without a grace period, it makes
    a final archive if the request names a storage for the archive, and deletes the guest with its disks.
  - If Proxmox does not list the guest, the plugin fails unless it is proven that the guest does not exist.
extends_documentation_fragment:
  - agent_smith.proxmox.vm
"""

EXAMPLES = r"""
- name: Delete the VM
  agent_smith.proxmox.vm_absent:
    vm:
      service_id: 0f7e2c1a-1111-4222-8333-944455556666
      vmid: 100500
      name: web-0f7e2c1a
"""

RETURN = r"""
vm_result:
  description: The guest after the execution, and what the plugin changed. Also set as the custom stat C(vm_result).
  returned: when the guest was found or created
  type: dict
  sample:
    vmid: 100500
    node: pve1
    name: web-0f7e2c1a
    status: absent
    changed: true
modules:
  description: The modules of community.proxmox that were executed, in order.
  returned: always
  type: list
  elements: str
  sample: [community.proxmox.proxmox_kvm]
requests:
  description: The POST, PUT and DELETE requests that the plugin sent itself, because no module can make the change.
  returned: always
  type: list
  elements: str
  sample: []
msg:
  description: "The error, as C(CODE: reason)."
  returned: on failure
  type: str
  sample: "VM_LOCKED: VM is locked (backup)"
"""
