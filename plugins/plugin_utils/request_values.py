# SPDX-License-Identifier: Apache-2.0
"""Reads the values of `vm` (the requested VM), and builds the argument spec of an action plugin."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .shared.vm_arguments import VM_ARGUMENTS


def is_yes(value: Any) -> bool:
    """Return the boolean that `value` means. A value from a command line or from Proxmox is a text, such as `1`."""
    return str(value).strip().lower() in ("1", "true", "yes", "on")


def given_members(validated_value: Any, original_value: Any) -> Any:
    """Return the validated `vm` with only the members that `vm` had before its validation and that are not None.

    Ansible's validation adds each missing member with the value None, but None must mean the same as a missing member:
    no change. `original_value` is `vm` before its validation. If it is a text from a command line,
    its members are not known. Then the function removes only the members that are None. The function calls itself for
    each member of `vm` and each item of a list.
    """
    if isinstance(validated_value, dict):
        original_members = original_value if isinstance(original_value, dict) else validated_value
        members = {
            name: value for name, value in validated_value.items() if name in original_members and value is not None
        }
        return {name: given_members(value, original_members[name]) for name, value in members.items()}
    if isinstance(validated_value, list):
        original_items = original_value if isinstance(original_value, list) else validated_value
        return [
            given_members(item, original_item)
            for item, original_item in zip(validated_value, original_items, strict=True)
        ]
    return validated_value


def argument_spec(required_members: Collection[str], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return Ansible's argument spec of an action plugin.

    `required_members` are the members of `vm` that this plugin requires, and `arguments` are the plugin's arguments
    beside `vm`, `connection` (the login for Proxmox) and `ca_bundle`.
    """
    members = {name: {**VM_ARGUMENTS[name], "required": True} for name in required_members}
    return {
        "vm": {"type": "dict", "required": True, "options": {**VM_ARGUMENTS, **members}},
        "connection": {"type": "dict", "no_log": True},
        "ca_bundle": {"type": "path", "default": ""},
        **arguments,
    }
