# SPDX-License-Identifier: Apache-2.0
"""Reads values of a request that may be texts, because they come from a command line."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .shared.vm_arguments import VM_ARGUMENTS


def is_yes(value: Any) -> bool:
    """Return the boolean that `value` means. A value from the command line or from Proxmox is a text."""
    return str(value).strip().lower() in ("1", "true", "yes", "on")


def given_members(validated: Any, given: Any) -> Any:
    """Return the validated request with only those members that were given and are not None.

    Ansible's validation adds each missing member with the value None, but None must mean the same as a missing member:
    no change. `given` is a text if the request came from a command line.
    """
    if isinstance(validated, dict):
        names = given if isinstance(given, dict) else validated
        members = {name: value for name, value in validated.items() if name in names and value is not None}
        return {name: given_members(value, names[name]) for name, value in members.items()}
    if isinstance(validated, list):
        items = given if isinstance(given, list) else validated
        return [given_members(item, given_item) for item, given_item in zip(validated, items, strict=True)]
    return validated


def argument_spec(required_members: Collection[str], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return Ansible's argument spec of an action.

    `required_members` are the members of `vm` that the action requires, and `arguments` are its arguments beside `vm`
    and the login.
    """
    members = {name: {**VM_ARGUMENTS[name], "required": True} for name in required_members}
    return {
        "vm": {"type": "dict", "required": True, "options": {**VM_ARGUMENTS, **members}},
        "connection": {"type": "dict", "no_log": True},
        "ca_bundle": {"type": "path", "default": ""},
        **arguments,
    }
