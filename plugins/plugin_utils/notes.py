# SPDX-License-Identifier: Apache-2.0
"""Writes a guest's description: the service's text, the lines that replace refused tags, the agent and the marker.

`vm` is the request: the extra var of every playbook (docs/actions.md). `facts` are a guest's facts, as `LookUp.run`
returns them.
All functions are pure.
"""

from __future__ import annotations

from typing import Any

from .deletion import WITHOUT_TAGS, deletion_due_at, deletion_line, written_deletion_line
from .identity import PROTECTED_LINE, has_protected_line
from .request_values import is_yes
from .shared.marker import agent_in, marker_for, with_agent, without_forged_lines, without_our_lines


def description(vm: dict[str, Any], marks: str = "") -> str:
    """Return the guest's description: the service's text, then our lines. `marks` are those before the marker.

    A part of the service's text that imitates one of our lines is altered.
    """
    text = without_forged_lines(str(vm.get("description") or "")).strip()
    our_lines = f"{marks}{marker_for(str(vm['service_id']).lower())}"
    return with_agent(f"{text}\n\n{our_lines}" if text else our_lines, str(vm.get("agent_id") or ""))


def changed_description(facts: dict[str, Any], vm: dict[str, Any], has_marker: bool) -> str | None:
    """Return the whole new description, or None if the description need not change.

    A request without an agent's id keeps the agent that the description names. A request without a mark keeps the mark
    that the description has.
    """
    if not has_marker:
        return description(vm, deletion_line(vm) + _protected_line(vm, has_line=False))
    current = str(facts["config"].get("description") or "")
    agent_id = str(vm.get("agent_id") or agent_in(current))
    written_line = written_deletion_line(facts)
    kept_line = "" if is_deletion_cancelled(facts, vm) else written_line
    has_line = has_protected_line(facts)
    marks = (deletion_line(vm) or kept_line) + _protected_line(vm, has_line=has_line)
    if "description" in vm:
        return description({**vm, "agent_id": agent_id}, marks)
    if marks != written_line + (PROTECTED_LINE if has_line else ""):
        return description({**vm, "agent_id": agent_id, "description": without_our_lines(current)}, marks)
    return with_agent(current, agent_id) if agent_id.lower() != agent_in(current) else None


def is_deletion_cancelled(facts: dict[str, Any], vm: dict[str, Any]) -> bool:
    """Return True if the request cancels a deletion for which the VM is marked."""
    return is_yes(vm.get("cancel_deletion", False)) and bool(deletion_due_at(facts))


def _protected_line(vm: dict[str, Any], *, has_line: bool) -> str:
    """Return the line by which the service has requested Proxmox's protection flag; '' if a tag says it, or none.

    `has_line` says whether the description has the line. A line is kept until the service removes the protection.
    """
    requested = vm.get("protection")
    is_kept = has_line and (requested is None or is_yes(requested))
    is_added = requested is not None and is_yes(requested) and bool(vm.get(WITHOUT_TAGS))
    return PROTECTED_LINE if is_kept or is_added else ""
