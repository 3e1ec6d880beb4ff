# SPDX-License-Identifier: Apache-2.0
"""Turns the failures of modules and of Proxmox tasks into error texts of the form `CODE: text`. Pure functions."""

from __future__ import annotations

import os
import re
import traceback
from typing import Any

from .identity import ha_problem
from .shared.error_rules import (
    ClassifiedFailure,
    classify_ansible_task_failure,
    classify_failure,
    classify_failure_keeping_code,
)
from .shared.reactions import Outcome, outcome_of

#: The beginning of Proxmox's text about new values that a running guest did not apply. The values are pending until the
#: guest's next start.
HOTPLUG_PROBLEM = re.compile(r"hotplug problem - |unable to hotplug \w{1,40}: ")
#: The beginning of a module's text about a Proxmox task that has done its work with warnings. Proxmox's text follows.
TASK_WITH_WARNINGS = re.compile(r"\AError occurred on task execution: WARNINGS: \d")
#: The key that `with_exception_as_message` adds to the answer of a module that ended with an exception.
ENDED_BY_EXCEPTION = "ended_by_exception"


def failure(result: dict[str, Any]) -> str:
    """Return the error of a failed Ansible task as `CODE: text`. `result` is the value that Ansible registers.

    Playbooks call this function as the filter `failure`. If the result's message begins with an error code, this code
    is used. But the message of a module that sends requests to Proxmox may quote Proxmox, so an error code in such a
    message is ignored.
    """
    failed_items = [item for item in result.get("results") or [] if item.get("failed")]
    result = failed_items[0] if failed_items else result  # a loop's own message does not contain the item's error
    return _code_and_text(classify_ansible_task_failure(result, _message(result)))


def proxmox_failure(answer: dict[str, Any]) -> str:
    """Return the error of a module or of a request as `CODE: text`. `answer` contains the text as `msg`.

    The text is from Proxmox, so an error code in it is ignored.
    """
    return _code_and_text(classify_failure(_message(answer)))


def proxmox_task_failure(text: str) -> str:
    """Return the error of a Proxmox task that has failed as `CODE: text`.

    `proxmox_failure` returns PLAYBOOK_FAILED for an unknown text. Here an unknown text gets the code TASK_FAILED.
    """
    code, _, reason = proxmox_failure({"msg": text}).partition(": ")
    return f"{'TASK_FAILED' if code == 'PLAYBOOK_FAILED' else code}: {reason}"


def action_plugin_failure(text: str) -> str:
    """Return the error text of an action plugin as `CODE: text`, in one line.

    `classify_failure_keeping_code` keeps an error code at the beginning of `text`. Without such a code, it classifies
    `text` like a text of Proxmox.
    """
    return _code_and_text(classify_failure_keeping_code(text))


def with_exception_as_message(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of a module with the text of its exception as `msg`, if the module ended with an exception.

    Such an answer has no `msg` but an `exception`, which Ansible has made from the module's traceback.
    ENDED_BY_EXCEPTION is added because a module may have made its change before the exception. For example, some
    modules change the VM, then read it, and do not catch an exception of the read request.
    """
    if not answer.get("failed") or answer.get("msg"):
        return answer
    exception = answer.get("exception")
    text = getattr(getattr(exception, "event", None), "msg", "") or exception
    last_line = str(text or _message(answer)).strip().rpartition("\n")[2]
    return {**answer, "msg": last_line or "the module ended without a message", ENDED_BY_EXCEPTION: True}


def _message(result: dict[str, Any]) -> str:
    return str(result.get("msg") or result.get("module_stderr") or result.get("stdout") or "")


def _code_and_text(classified_failure: ClassifiedFailure) -> str:
    return f"{classified_failure.code}: {classified_failure.text}"


def type_and_location_of(exc: BaseException) -> str:
    """Return the type and the place of an unexpected exception, without its text, which may contain a secret."""
    frame = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{type(exc).__name__} in {os.path.basename(frame.filename)}:{frame.lineno}"


def is_outcome_unknown(result: dict[str, Any], *, is_single_request: bool = False) -> bool:
    """Return True if a change failed but may have been made. The action plugin must then look up the VM again.

    The outcome of an error code (table in `shared/reactions.py`) says whether a request that failed with this code may
    have made its change. PARTLY_KNOWN means that the failed request changed nothing, but an earlier request of the
    same module may have changed something. `is_single_request` is true if the action plugin sent the request itself,
    without a module, so there was no earlier request. A text that matches no rule gets a code whose outcome is UNKNOWN.
    """
    if not result.get("failed"):
        return False
    text = str(result.get("msg", ""))
    may_have_changed = "Reached timeout" in text or TASK_WITH_WARNINGS.match(text) or HOTPLUG_PROBLEM.search(text)
    if result.get(ENDED_BY_EXCEPTION) or may_have_changed:
        return True
    outcome = outcome_of(classify_failure(text).code)
    return outcome is Outcome.UNKNOWN or (outcome is Outcome.PARTLY_KNOWN and not is_single_request)


def error_of_change_not_made(answer: dict[str, Any]) -> str:
    """Return the error of a change whose outcome was unknown, after a look-up has found that the change was not made.

    Proxmox has accepted the login for the look-up. So an earlier refusal of the login was temporary: its code PVE_AUTH
    is replaced by PVE_UNREACHABLE, after which the agent retries the job.
    """
    code, _, reason = proxmox_failure(answer).partition(": ")
    return f"{'PVE_UNREACHABLE' if code == 'PVE_AUTH' else code}: {reason}"


def replace_vmid_taken_code(problem: str, answer: dict[str, Any]) -> str:
    """Replace VM_ID_TAKEN in `problem` by VM_IDENTITY_MISMATCH if Proxmox has accepted the creation of the guest.

    `problem` is the error text of the check of the guest that has the reserved VMID; '' if the check has passed.
    `answer` is the answer to the creation. After VM_ID_TAKEN, the agent would create another guest with another VMID.
    But if Proxmox has accepted the creation, the guest with this VMID is the new guest, and an operator must check it.
    """
    text = str(answer.get("msg", ""))
    is_refused = answer.get("failed") and "Reached timeout" not in text
    if is_refused or not problem.startswith("VM_ID_TAKEN: "):
        return problem
    return (
        f"VM_IDENTITY_MISMATCH: {problem.removeprefix('VM_ID_TAKEN: ')}, although Proxmox has just created this guest"
    )


def outcome_problem(facts: dict[str, Any], answer: dict[str, Any], wanted_state: str) -> str:
    """Return why the VM is not in the wanted state after a change; '' if it is. `answer` is the module's answer.

    `facts` is what a look-up of the VM after the change has found. Its member `reached` is true if the VM is in the
    wanted state. `wanted_state` is only used in the text, such as `VM 100 is stopped, not running`. The first reason
    that applies is returned: the VM's HA state `error`, the error of the Proxmox task, the error of the module, a
    Proxmox task that still runs, the timeout of the module, the VM's lock, the VM's status.
    """
    if facts.get("reached"):
        return ""
    if problem := ha_problem(facts):
        return problem
    # `answer` is a success or a failure with an unknown outcome: after any other failure, the action plugin has ended.
    module_error = str(answer.get("msg", "")) if is_outcome_unknown(answer) else ""
    # Action plugins call many modules with `timeout=0`, and then wait themselves. So the timeout of a module is
    # reported only if no Proxmox task has failed or still runs.
    has_timed_out = "Reached timeout" in module_error
    text = facts.get("task_error") or ("" if has_timed_out else module_error)
    if not text and facts.get("running_tasks"):
        return f"TASK_TIMEOUT: Proxmox task {facts['running_tasks'][0]} has not ended in time"
    if text or module_error:
        is_from_module = bool(text) and text == module_error
        return error_of_change_not_made(answer) if is_from_module else proxmox_task_failure(text or module_error)
    if facts.get("lock"):
        return f"VM_LOCKED: VM {facts['vmid']} is not {wanted_state} yet, because it is locked ({facts['lock']})"
    state_text = f"VM {facts['vmid']} is {facts['status']}, not {wanted_state}"
    return f"TASK_FAILED: {state_text}, although Proxmox reported no error"
