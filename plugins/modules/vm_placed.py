# SPDX-License-Identifier: Apache-2.0
"""The documentation of the action plugin `vm_placed`. Its code is in `plugins/action/vm_placed.py`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_placed
short_description: A service's VM is on its target node
version_added: 0.1.0
author: Agent Smith contributors (@agent-smith)
description:
  - Migrates the VM, and verifies its node and its power state. Containers are refused.
extends_documentation_fragment:
  - agent_smith.proxmox.vm
"""

EXAMPLES = r"""
- name: Migrate the VM
  agent_smith.proxmox.vm_placed:
    vm:
      service_id: 0f7e2c1a-1111-4222-8333-944455556666
      vmid: 100500
      name: web-0f7e2c1a
      target_node: pve2
"""

RETURN = r"""
vm_result:
  description: The guest when the plugin ends, and what the plugin changed. Also set as the custom stat C(vm_result).
  returned: when the guest was found
  type: dict
  sample:
    vmid: 100500
    node: pve2
    name: web-0f7e2c1a
    status: running
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
