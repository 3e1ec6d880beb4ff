# SPDX-License-Identifier: Apache-2.0
"""The documentation of the action plugin `vm_info`. Its code is in `plugins/action/vm_info.py`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_info
short_description: Reads one guest's facts from Proxmox
version_added: 0.1.0
author: Agent Smith contributors (@agent-smith)
description:
  - Reads a guest's configuration and status, and can wait until the guest has the state O(wait_for). Changes nothing.
  - If Proxmox does not list the guest, it may not exist, or the token may lack the privilege to see it.
    O(prove_absence) finds out which is the case.
options:
  vmid:
    description:
      - The guest's VMID.
    type: int
    required: true
  kind:
    description:
      - A virtual machine (V(qemu)) or a container (V(lxc)).
    type: str
    default: qemu
    choices:
      - qemu
      - lxc
  node:
    description:
      - Node on which the guest is expected. If the guest is not there, its node is looked up.
    type: str
    default: ""
  prove_absence:
    description:
      - If the guest is not found, set the fact C(absence.is_proven) to true if it is proven that the guest does not
        exist. If C(absence.is_proven) is false, C(absence.code) is the error code, and C(absence.text) is the reason.
    type: bool
    default: false
  with_snapshots:
    description:
      - Add the fact C(snapshots).
    type: bool
    default: false
  backup_storage:
    description:
      - Add the fact C(backups), the archives of the guest on this storage.
    type: str
    default: ""
  wait_for:
    description:
      - State to wait for, at most O(timeout_s). The fact C(reached) states whether the guest has this state.
      - V(unlocked) waits for the end of a creation or a deletion. It ignores other locks, such as C(backup).
      - V(idle), V(quiet) and V(restarted) are about the guest's new Proxmox tasks, which are not in O(known_tasks).
      - V(idle) is reached if at least one new Proxmox task exists, and all of them have succeeded.
      - V(quiet) is reached if all new Proxmox tasks have ended, with or without success, or if none exists.
      - V(restarted) is reached if a new Proxmox task has restarted the guest.
    type: str
    default: nothing
    choices:
      - nothing
      - unlocked
      - running
      - stopped
      - absent
      - idle
      - quiet
      - restarted
  known_tasks:
    description:
      - The fact C(known_tasks) that this module returned before the playbook changed the guest, a list of UPIDs. All
        other Proxmox tasks of the guest count as Proxmox tasks of this change.
    type: list
    elements: str
  timeout_s:
    description:
      - Maximum duration of the wait in seconds.
    type: float
    default: 240
  address_timeout_s:
    description:
      - How long to wait for the IP addresses of a running guest, in seconds. If it is negative, they are not read.
    type: float
    default: -1
  connection:
    description:
      - The login for Proxmox, as parameters of the modules of community.proxmox.
      - If it is missing, the login comes from the variable C(smith_login), a dictionary with the same keys and the key
        C(ca_bundle). Without this variable, it comes from the file that E(SMITH_CREDENTIALS_FILE) names, or else from
        the environment variables C(PROXMOX_*).
    type: dict
  ca_bundle:
    description:
      - Path of the file with the cluster's CA.
    type: path
    default: ""
attributes:
  check_mode:
    description: Does the same in check mode, because it changes nothing.
    support: full
  diff_mode:
    description: Changes nothing, so there is no difference.
    support: none
requirements:
  - proxmoxer >= 2.2
"""

EXAMPLES = r"""
- name: Read the VM's facts
  agent_smith.proxmox.vm_info:
    vmid: 100500
  register: looked_up

- name: Show the VM's node
  ansible.builtin.debug:
    msg: "{{ looked_up.vm.node }}"
"""

RETURN = r"""
vm:
  description: The guest's facts. All facts that the options name, such as C(reached), are members of C(vm).
  returned: success
  type: dict
  sample:
    exists: true
    kind: qemu
    vmid: 100500
    node: pve1
    name: web-0f7e2c1a
    status: running
    lock: ""
"""
