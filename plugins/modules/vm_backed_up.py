# SPDX-License-Identifier: Apache-2.0
"""The documentation of the action plugin `vm_backed_up`. Its code is in `plugins/action/vm_backed_up.py`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_backed_up
short_description: A new archive of a service's guest exists
version_added: 0.1.0
author: Agent Smith contributors (@agent-smith)
description:
  - Backs up the guest, and verifies that the storage has a new archive.
  - The archive's notes contain the guest's name and its marker.
  - No archive is removed, even if the storage's retention would remove one. If the storage already
    has its maximum number of archives of the VMID, the plugin fails with C(CAPACITY).
extends_documentation_fragment:
  - agent_smith.proxmox.vm
"""

EXAMPLES = r"""
- name: Back up the VM
  agent_smith.proxmox.vm_backed_up:
    vm:
      service_id: 0f7e2c1a-1111-4222-8333-944455556666
      vmid: 100500
      name: web-0f7e2c1a
      backup_storage: backups
"""

RETURN = r"""
vm_result:
  description:
    - The guest after the execution. C(changed) is true if this execution changed something.
    - Also set as the custom stat C(vm_result).
  returned: when the guest was found
  type: dict
  sample:
    vmid: 100500
    node: pve1
    name: web-0f7e2c1a
    status: running
    changed: true
modules:
  description: The modules of community.proxmox that were executed, in order.
  returned: always
  type: list
  elements: str
  sample: []
requests:
  description: The POST, PUT and DELETE requests that the plugin sent without a module of community.proxmox.
  returned: always
  type: list
  elements: str
  sample: ["POST nodes/pve1/vzdump"]
msg:
  description: "The error, as C(CODE: reason)."
  returned: on failure
  type: str
  sample: "VM_LOCKED: VM is locked (backup)"
"""
