# SPDX-License-Identifier: Apache-2.0
"""The documentation of the action plugin `vm_configured`. Its code is in `plugins/action/vm_configured.py`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_configured
short_description: A service's guest has the requested configuration
version_added: 0.1.0
author: Agent Smith contributors (@agent-smith)
description:
  - Sends only the values that differ from the guest's configuration.
  - Generates the cloud-init drive of a running VM again if cloud-init values differ.
  - Restarts the guest if C(vm.allow_reboot) is true and if some new values, such as cloud-init values, take effect only
    after a restart.
extends_documentation_fragment:
  - agent_smith.proxmox.vm
options:
  only_grows:
    description:
      - Only grow disks. The Ansible task fails if the values in the option C(vm) require a new disk or the move of a
        disk. Of these values, only C(disk_gib), C(disks) and those that identify the guest are used.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Give the VM four cores
  agent_smith.proxmox.vm_configured:
    vm:
      service_id: 0f7e2c1a-1111-4222-8333-944455556666
      vmid: 100500
      name: web-0f7e2c1a
      cores: 4
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
  sample: ["PUT nodes/pve1/qemu/100500/cloudinit"]
msg:
  description: "The error, as C(CODE: reason)."
  returned: on failure
  type: str
  sample: "VM_LOCKED: VM is locked (backup)"
"""
