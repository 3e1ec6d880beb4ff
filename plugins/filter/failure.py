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
  - Finds the error text in the result of a failed Ansible task (of a loop, the text of the first failed item), and puts
    before it the error code for this text.
  - If the text already begins with an error code, no code is added.
  - A text that a module of community.proxmox returned always gets a code. It may quote Proxmox, and a quoted text may
    begin with a word that only looks like an error code.
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
