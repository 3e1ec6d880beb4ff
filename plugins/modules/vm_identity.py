# SPDX-License-Identifier: Apache-2.0
"""The documentation of the action plugin `vm_identity`. Its code is in `plugins/action/vm_identity.py`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_identity
short_description: Verifies that a guest belongs to the service, and returns its facts and vm_result
version_added: 0.1.0
author: Agent Smith contributors (@agent-smith)
description:
  - Looks the guest up, waits while Proxmox is creating or deleting it, and compares its type (VM or container), marker
    and name with the request. Changes nothing.
  - The playbooks of a provider's own actions call it before their first change and after their last change.
extends_documentation_fragment:
  - agent_smith.proxmox.vm
options:
  may_be_absent:
    description:
      - Do not fail if the guest does not exist. If the module cannot be certain of this, for example because the token
        cannot see the guest, the module fails.
    type: bool
    default: false
  known_tasks:
    description:
      - The fact C(known_tasks) from before the playbook's change, a list of UPIDs. If it is set, the UPIDs of the
        guest's Proxmox tasks that are not in this list are returned as the member C(upids) of C(vm_result).
    type: list
    elements: str
  result:
    description:
      - Members of C(vm_result) that the playbook sets itself, such as C(changed).
    type: dict
    default: {}
attributes:
  check_mode:
    description: Does the same in check mode, because it changes nothing.
    support: full
  diff_mode:
    description: Changes nothing, so there is no difference.
    support: none
"""

EXAMPLES = r"""
- name: Verify the VM's identity
  agent_smith.proxmox.vm_identity:
    vm:
      service_id: 0f7e2c1a-1111-4222-8333-944455556666
      vmid: 100500
      name: web-0f7e2c1a
  register: looked_up
"""

RETURN = r"""
facts:
  description: The guest's facts, as M(agent_smith.proxmox.vm_info) returns them.
  returned: success
  type: dict
vm_result:
  description:
    - The guest, as read from Proxmox, and the members of the argument C(result). Also set as the custom stat
      C(vm_result).
  returned: when the guest was found
  type: dict
  sample:
    vmid: 100500
    node: pve1
    name: web-0f7e2c1a
    status: running
    changed: false
modules:
  description: Always empty, because the plugin executes no module of community.proxmox.
  returned: always
  type: list
  elements: str
  sample: []
requests:
  description: Always empty, because the plugin sends no POST, PUT or DELETE request.
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
