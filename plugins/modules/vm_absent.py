# SPDX-License-Identifier: Apache-2.0
"""The documentation of the action plugin `vm_absent`. Its code is in `plugins/action/vm_absent.py`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_absent
short_description: A service's guest does not exist any more, or it is marked for a later deletion
version_added: 0.1.0
author: Agent Smith contributors (@agent-smith)
description:
  - Stops the guest, and deletes it with its disks. If C(vm.final_backup) names a storage, the plugin backs up the
    guest to this storage before the deletion.
  - With C(vm.grace_s), the plugin stops the guest and marks it for a deletion C(vm.grace_s) seconds later. A further
    execution with C(vm.grace_s) changes nothing before this time, and deletes the guest after this time.
  - If Proxmox does not list the guest, the plugin checks whether the guest may exist, for example on an offline node.
    If it may exist, the plugin fails.
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
  returned: when the guest was found, or it is certain that the guest does not exist
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
  description: The POST, PUT and DELETE requests that the plugin sent without a module of community.proxmox.
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
