# SPDX-License-Identifier: Apache-2.0
"""The documentation of the action plugin `vm_present`. Its code is in `plugins/action/vm_present.py`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_present
short_description: A guest exists with its reserved VMID and has the requested configuration
version_added: 0.1.0
author: Agent Smith contributors (@agent-smith)
description:
  - Clones a template, creates a VM without a template (with or without an ISO image), or creates a container. Then
    configures the guest.
  - If an interrupted run has already created the service's guest, this guest is adopted. A service never gets a second
    guest.
  - If the plugin refuses C(vm), for example because of an unknown member, it has changed nothing.
extends_documentation_fragment:
  - agent_smith.proxmox.vm
"""

EXAMPLES = r"""
- name: Ensure the VM exists
  agent_smith.proxmox.vm_present:
    vm:
      service_id: 0f7e2c1a-1111-4222-8333-944455556666
      vmid: 100500
      name: web-0f7e2c1a
      template_vmid: 9000
      cores: 2
      memory_mib: 2048
      disk_gib: 10
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
    status: stopped
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
