# SPDX-License-Identifier: Apache-2.0
"""The documentation of the action plugin `vm_snapshot`. Its code is in `plugins/action/vm_snapshot.py`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_snapshot
short_description: Creates a snapshot of a service's guest, or rolls the guest back to it
version_added: 0.1.0
author: Agent Smith contributors (@agent-smith)
description:
  - Creates a snapshot or rolls back to a snapshot, and verifies the outcome.
extends_documentation_fragment:
  - agent_smith.proxmox.vm
options:
  state:
    description:
      - C(present) creates the snapshot, C(rolled_back) rolls back to it.
    type: str
    default: present
    choices:
      - present
      - rolled_back
  description:
    description:
      - Description of a new snapshot.
    type: str
    default: Taken by Agent Smith
"""

EXAMPLES = r"""
- name: Create a snapshot
  agent_smith.proxmox.vm_snapshot:
    vm:
      service_id: 0f7e2c1a-1111-4222-8333-944455556666
      vmid: 100500
      name: web-0f7e2c1a
      snapshot: before-upgrade
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
  sample: [community.proxmox.proxmox_snap]
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
