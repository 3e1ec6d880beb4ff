# SPDX-License-Identifier: Apache-2.0
"""The filter `module_environment`: returns the environment variables that community.proxmox's modules need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..plugin_utils.login import module_environment

DOCUMENTATION = """
name: module_environment
short_description: The environment that the modules of community.proxmox need
version_added: 0.1.0
author: Agent Smith contributors
description:
  - Returns the environment variables that set the path of the cluster's CA file, and the variable that sets the timeout
    of a request. community.proxmox reads both only from the environment.
options:
  _input:
    description: Path of the file with the cluster's CA; empty for the CAs of the system.
    type: str
    required: true
"""
EXAMPLES = """
- name: Start a VM
  community.proxmox.proxmox_kvm:
    vmid: 100
    state: started
  environment: "{{ smith_ca_bundle | agent_smith.proxmox.module_environment }}"
"""
RETURN = """
_value:
  description: The environment variables, by name.
  type: dict
"""


class FilterModule:
    """Registers the filter for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter's function, by the short name of the filter."""
        return {"module_environment": module_environment}
