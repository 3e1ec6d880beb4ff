# SPDX-License-Identifier: Apache-2.0
"""The filter `failure`: turns the result of a failed Ansible task into the error text `CODE: reason`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..plugin_utils.failures import failure

DOCUMENTATION = """
name: failure
short_description: The error of a failed Ansible task, with an error code first
version_added: 0.1.0
author: Agent Smith contributors
description:
  - Finds the innermost error text in the result of a failed Ansible task and puts the error code before it.
  - A text that has an error code already is returned unchanged, unless it is the message of a module of
    community.proxmox. Such a message quotes Proxmox, so a word in the message that looks like an error code is ignored,
    and the error code is found from the text of the message.
options:
  _input:
    description: The result of the failed Ansible task, such as C(ansible_failed_result) in a C(rescue) section.
    type: dict
    required: true
"""
EXAMPLES = """
- name: Fail with a message that begins with the error code
  ansible.builtin.fail:
    msg: "{{ ansible_failed_result | agent_smith.proxmox.failure }}"
"""
RETURN = """
_value:
  description: "The error, such as C(VM_LOCKED: VM is locked)."
  type: str
"""


class FilterModule:
    """Registers the filter for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter's function, by the short name of the filter."""
        return {"failure": failure}
