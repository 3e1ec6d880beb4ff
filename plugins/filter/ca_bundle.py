# SPDX-License-Identifier: Apache-2.0
"""The filter `ca_bundle`: returns the path of the file with the cluster's CA certificates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..plugin_utils.login import find_ca_bundle

DOCUMENTATION = """
name: ca_bundle
short_description: The path of the file with the cluster's CA
version_added: 0.1.0
author: Agent Smith contributors
description:
  - Returns the member C(ca_bundle) of the credentials file, a YAML file with the login for Proxmox. If it is not set,
    returns the environment variable E(PROXMOX_CA_BUNDLE) or, if that is not set, E(REQUESTS_CA_BUNDLE).
options:
  _input:
    description: Path of the credentials file. If it is empty, only the environment variables are read.
    type: str
    required: true
"""
EXAMPLES = """
- name: Show the file
  ansible.builtin.debug:
    msg: "{{ '' | agent_smith.proxmox.ca_bundle }}"
"""
RETURN = """
_value:
  description: The path, or an empty text if the CAs of the system are used.
  type: str
"""


class FilterModule:
    """Registers the filter for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter's function, by the short name of the filter."""
        return {"ca_bundle": find_ca_bundle}
