# SPDX-License-Identifier: Apache-2.0
"""The filter `connection`: returns the login for Proxmox as parameters of community.proxmox's modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..plugin_utils.login import read_login_parameters

DOCUMENTATION = """
name: connection
short_description: The login for Proxmox as parameters of the modules of community.proxmox
version_added: 0.1.0
author: Agent Smith contributors
description:
  - Reads the login from a credentials file, or from the environment variables E(PROXMOX_HOST), E(PROXMOX_PORT),
    E(PROXMOX_USER), E(PROXMOX_TOKEN_ID), E(PROXMOX_TOKEN_SECRET), E(PROXMOX_PASSWORD) and E(PROXMOX_VALIDATE_CERTS).
  - Empty values are left out. The result always has C(validate_certs), which is true by default.
options:
  _input:
    description: Path of the credentials file, a YAML mapping. If it is empty, the environment variables are read.
    type: str
    required: true
"""
EXAMPLES = """
- name: Use the modules of community.proxmox with the login
  hosts: proxmox
  module_defaults:
    group/community.proxmox.proxmox: "{{ '' | agent_smith.proxmox.connection }}"
"""
RETURN = """
_value:
  description: C(api_host), C(api_port) if a port is set, C(api_user), C(validate_certs), and a token or a password.
  type: dict
"""


class FilterModule:
    """Registers the filter for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter's function, by the short name of the filter."""
        return {"connection": read_login_parameters}
