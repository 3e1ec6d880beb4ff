# SPDX-License-Identifier: Apache-2.0
"""Turns the failures of modules and of Proxmox tasks into `CODE: reason`. Pure functions."""

from __future__ import annotations

import os
import traceback
from typing import Any

from .shared.error_rules import Reaction, classify_failure


def failure(result: dict[str, Any]) -> str:
    """Return the error of a failed Ansible task as `CODE: text`. `result` is the value that Ansible registers."""
    failed = [item for item in result.get("results") or [] if item.get("failed")]
    result = failed[0] if failed else result  # a loop's own message does not contain the item's error
    classified = classify_failure(str(result.get("msg") or result.get("module_stderr") or result.get("stdout") or ""))
    return f"{classified.code}: {classified.text}"


def location_of(exc: BaseException) -> str:
    """Return the type of an unexpected exception and where it was raised. Its text may contain a secret."""
    frame = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{type(exc).__name__} in {os.path.basename(frame.filename)}:{frame.lineno}"


def is_outcome_unknown(result: dict[str, Any]) -> bool:
    """Return True if a failed module may have made its change. The action must then read the VM's state again."""
    text = str(result.get("msg", ""))
    if "Reached timeout" in text or "deserialization failed" in text:
        # "deserialization failed" means that the module was killed, or that proxmox_snap ended without a result.
        return True
    classified = classify_failure(text)
    return classified.reaction is Reaction.CHECK or classified.code in ("PVE_UNREACHABLE", "VM_ID_TAKEN")


def outcome_problem(facts: dict[str, Any], change: dict[str, Any], wanted: str) -> str:
    """Return why the VM is not in the state `wanted` after a change. `change` is the answer of the module.

    The first of these that is known is returned: the error of the Proxmox task, the error of the module, a Proxmox task
    that still runs, the timeout of the module, the VM's lock, the VM's status.
    """
    if facts.get("reached"):
        return ""
    module_error = str(change.get("msg", "")) if is_outcome_unknown(change) else ""
    has_timed_out = "Reached timeout" in module_error  # many modules do not wait for the end, so this is no reason
    text = facts.get("task_error") or ("" if has_timed_out else module_error)
    if not text and facts.get("running_tasks"):
        return f"TASK_TIMEOUT: Proxmox task {facts['running_tasks'][0]} has not ended in time"
    text = text or module_error
    if text:
        code, reason = classify_failure(text).code, classify_failure(text).text
        return f"{'TASK_FAILED' if code == 'PLAYBOOK_FAILED' else code}: {reason}"
    if facts.get("lock"):
        return f"VM_LOCKED: VM is locked ({facts['lock']}) and not {wanted} in time"
    return f"TASK_FAILED: VM {facts['vmid']} is {facts['status']}, not {wanted}, although Proxmox reported no error"
