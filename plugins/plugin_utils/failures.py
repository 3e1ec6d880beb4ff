# SPDX-License-Identifier: Apache-2.0
"""Turns the failures of modules and of Proxmox tasks into `CODE: reason`. Pure functions."""

from __future__ import annotations

import os
import re
import traceback
from typing import Any

from .identity import ha_problem
from .shared.error_rules import ClassifiedFailure, classify_failure, classify_own_failure, classify_task_failure
from .shared.reactions import Outcome, outcome_of

#: The beginning of Proxmox's text about new values that a running guest did not apply. They are pending until its next
#: start.
HOTPLUG_PROBLEM = re.compile(r"hotplug problem - |unable to hotplug \w{1,40}: ")
#: The beginning of a module's text about a Proxmox task that has done its work with warnings. Proxmox's text follows.
TASK_WITH_WARNINGS = re.compile(r"\AError occurred on task execution: WARNINGS: \d")
#: The key of an answer whose module ended by an exception.
ENDED_BY_EXCEPTION = "ended_by_exception"


def failure(result: dict[str, Any]) -> str:
    """Return the error of a failed Ansible task as `CODE: text`. `result` is the value that Ansible registers.

    A code that the text begins with is used, unless the result is from a module that sends requests to Proxmox.
    """
    failed = [item for item in result.get("results") or [] if item.get("failed")]
    result = failed[0] if failed else result  # a loop's own message does not contain the item's error
    return _code_and_text(classify_task_failure(result, _message(result)))


def proxmox_failure(answer: dict[str, Any]) -> str:
    """Return the error of a module or of a request as `CODE: text`. `answer` contains the text as `msg`.

    The text is from Proxmox, so an error code in it is ignored.
    """
    return _code_and_text(classify_failure(_message(answer)))


def task_failure(text: str) -> str:
    """Return the error of a Proxmox task that has failed as `CODE: text`. An unknown text gets the code TASK_FAILED."""
    code, _, reason = proxmox_failure({"msg": text}).partition(": ")
    return f"{'TASK_FAILED' if code == 'PLAYBOOK_FAILED' else code}: {reason}"


def own_failure(text: str) -> str:
    """Return the error of an action, which begins with a code, as `CODE: text`."""
    return _code_and_text(classify_own_failure(text))


def with_message(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of a module with the text of its exception as `msg`, if the module ended by an exception.

    Such an answer has no `msg` but an `exception`, which Ansible has made from the module's traceback. Some modules do
    not catch the exceptions of their reading requests. Before such an exception, the module may have made its change.
    """
    if not answer.get("failed") or answer.get("msg"):
        return answer
    exception = answer.get("exception")
    text = getattr(getattr(exception, "event", None), "msg", "") or exception
    last_line = str(text or _message(answer)).strip().rpartition("\n")[2]
    return {**answer, "msg": last_line or "the module ended without a message", ENDED_BY_EXCEPTION: True}


def _message(result: dict[str, Any]) -> str:
    return str(result.get("msg") or result.get("module_stderr") or result.get("stdout") or "")


def _code_and_text(classified: ClassifiedFailure) -> str:
    return f"{classified.code}: {classified.text}"


def location_of(exc: BaseException) -> str:
    """Return the type of an unexpected exception and where it was raised. Its text may contain a secret."""
    frame = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{type(exc).__name__} in {os.path.basename(frame.filename)}:{frame.lineno}"


def is_outcome_unknown(result: dict[str, Any], *, is_single_request: bool = False) -> bool:
    """Return True if a failed change may have been made. The action must then read the VM's state again.

    The table in `shared/reactions.py` has the outcome of each error code; an unknown text has a code with an unknown
    outcome. `is_single_request` is true if the action sent the request itself; a module sends several.
    """
    if not result.get("failed"):
        return False
    text = str(result.get("msg", ""))
    may_be_made = "Reached timeout" in text or TASK_WITH_WARNINGS.match(text) or HOTPLUG_PROBLEM.search(text)
    if result.get(ENDED_BY_EXCEPTION) or may_be_made:
        return True
    outcome = outcome_of(classify_failure(text).code)
    return outcome is Outcome.UNKNOWN or (outcome is Outcome.UNSENT and not is_single_request)


def failure_after_look_up(answer: dict[str, Any]) -> str:
    """Return the error of a change whose outcome was unknown, after a look-up has found that it was not made.

    Proxmox has accepted the login of the look-up, so a refused login was temporary.
    """
    code, _, reason = proxmox_failure(answer).partition(": ")
    return f"{'PVE_UNREACHABLE' if code == 'PVE_AUTH' else code}: {reason}"


def created_guest_problem(problem: str, change: dict[str, Any]) -> str:
    """Return `problem`, with a code other than VM_ID_TAKEN if Proxmox has accepted the creation.

    `change` is the answer to the creation. VM_ID_TAKEN would make the agent create another guest with another VMID.
    After an accepted creation, the guest on this VMID is the new one, so an operator must look at it.
    """
    text = str(change.get("msg", ""))
    is_refused = change.get("failed") and "Reached timeout" not in text
    if is_refused or not problem.startswith("VM_ID_TAKEN: "):
        return problem
    return f"VM_IDENTITY_MISMATCH: {problem.removeprefix('VM_ID_TAKEN: ')}, although Proxmox has just created it"


def outcome_problem(facts: dict[str, Any], change: dict[str, Any], wanted: str) -> str:
    """Return why the VM is not in the state `wanted` after a change. `change` is the answer of the module.

    The first of these that is known is returned: the error of the Proxmox task, the error of the module, a Proxmox task
    that still runs, the timeout of the module, the VM's lock, the VM's status.
    """
    if facts.get("reached"):
        return ""
    if problem := ha_problem(facts):
        return problem
    module_error = str(change.get("msg", "")) if is_outcome_unknown(change) else ""
    has_timed_out = "Reached timeout" in module_error  # no reason for a failure: many modules do not wait for the end
    text = facts.get("task_error") or ("" if has_timed_out else module_error)
    if not text and facts.get("running_tasks"):
        return f"TASK_TIMEOUT: Proxmox task {facts['running_tasks'][0]} has not ended in time"
    if text or module_error:
        is_from_module = bool(text) and text == module_error
        return failure_after_look_up(change) if is_from_module else task_failure(text or module_error)
    if facts.get("lock"):
        return f"VM_LOCKED: VM is locked ({facts['lock']}) and not {wanted} in time"
    return f"TASK_FAILED: VM {facts['vmid']} is {facts['status']}, not {wanted}, although Proxmox reported no error"
