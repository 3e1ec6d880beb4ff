# SPDX-License-Identifier: Apache-2.0
"""The documentation of the action plugin `vm_power`. Its code is in `plugins/action/vm_power.py`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_power
short_description: Starts, stops or restarts a service's guest
version_added: 0.1.0
author: Agent Smith contributors (@agent-smith)
description:
  - Changes the power state, waits for the Proxmox task and verifies the state.
  - A start of a guest that is marked for deletion fails with C(VM_STATE).
extends_documentation_fragment:
  - agent_smith.proxmox.vm
options:
  state:
    description:
      - The requested state.
    type: str
    required: true
    choices:
      - running
      - stopped
      - restarted
"""

EXAMPLES = r"""
- name: Start the VM
  agent_smith.proxmox.vm_power:
    state: running
    vm:
      service_id: 0f7e2c1a-1111-4222-8333-944455556666
      vmid: 100500
      name: web-0f7e2c1a
"""

RETURN = r"""
vm_result:
  description: The guest after the execution, and what the plugin changed. Also set as the custom stat C(vm_result).
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
