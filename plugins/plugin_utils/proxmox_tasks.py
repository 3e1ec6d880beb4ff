# SPDX-License-Identifier: Apache-2.0
"""Interprets the entries of Proxmox's list of Proxmox tasks, and the logs of these tasks. Pure functions."""

from __future__ import annotations

import re
from typing import Any

from .shared.error_rules import classify_failure

#: The types of the Proxmox tasks that a change creates. A key is the result of the change, such as `running` for a
#: start, and the kind of guest.
#: The types `ha…` belong to guests that the HA manager starts, stops or migrates. A change that has no row creates no
#: Proxmox task.
TASK_TYPES: dict[tuple[str, str], tuple[str, ...]] = {
    ("cloned", "qemu"): ("qmclone",),
    ("created", "qemu"): ("qmcreate",),
    ("created", "lxc"): ("vzcreate",),
    ("configured", "qemu"): ("qmconfig", "qmmove", "resize"),
    ("running", "qemu"): ("qmstart", "hastart"),
    ("running", "lxc"): ("vzstart", "hastart"),
    ("stopped", "qemu"): ("qmshutdown", "hastop"),
    ("stopped", "lxc"): ("vzshutdown", "hastop"),
    ("restarted", "qemu"): ("qmreboot", "qmreset"),
    ("restarted", "lxc"): ("vzshutdown", "hastop", "vzstart", "hastart"),  # a stop, then a start
    ("migrated", "qemu"): ("qmigrate", "hamigrate"),
    ("snapshot", "qemu"): ("qmsnapshot",),
    ("snapshot", "lxc"): ("vzsnapshot",),
    ("rolled_back", "qemu"): ("qmrollback",),
    ("rolled_back", "lxc"): ("vzrollback",),
    ("backed_up", "qemu"): ("vzdump",),
    ("backed_up", "lxc"): ("vzdump",),
    ("absent", "qemu"): ("qmdestroy",),
    ("absent", "lxc"): ("vzdestroy",),
}
#: Matches a VMID in a line of a clone task's log. The VMID is in one of the two groups.
_VMID_IN_LOG = re.compile(r"\bID (\d+)\b|\bvm-(\d+)-")
#: Matches a line of a qmdestroy task's log about a volume that Proxmox could not remove: a disk, a disk on a deleted
#: storage, or an image of an interrupted backup. Proxmox 8 ends such a task with OK, Proxmox 9 with
#: WARNINGS; the VM is destroyed in both cases.
_VOLUME_NOT_REMOVED = re.compile(
    r"(?:Could not remove disk|failed to get path and owner of volume|error removing fleecing image) '([^']+)'"
)
#: Matches the status of a Proxmox task whose outcome is unknown: its process was killed, or its log was removed.
_UNKNOWN_OUTCOME = re.compile(
    r"unexpected status|interrupted by signal|received interrupt|unable to get last line from task log|no such task"
)
#: The error codes that `classify_failure` returns for a text that does not name the cause of a failure, such as the
#: status `job errors` (TASK_FAILED) or `unexpected status` (PVE_TIMEOUT).
_UNSPECIFIC_CODES = ("TASK_FAILED", "PLAYBOOK_FAILED", "PVE_TIMEOUT")
#: The number of lines at the end of a log in which the cause is searched. Earlier lines are about successful steps.
_SEARCHED_LINES = 30
#: Matches the time at the beginning of a line. Only some types of Proxmox tasks write it.
_TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
#: Matches the beginning of a line that reports an error of a backup, a migration, QEMU, or a container's start. Other
#: lines are about steps, such as `starting online/live migration on …`. They are ignored, because `classify_failure`
#: would return a wrong error code for some of them.
_CAUSE_LINE = re.compile(r"^(?:ERROR: |kvm: (?!(?:.*: )?warning: )|lxc-start: |lxc: |command '[^']+' failed)")
#: Matches the first words of some lines about errors. These words only repeat that the Proxmox task failed.
_CAUSE_PREFIX = re.compile(r"^ERROR: (?:migration aborted \([^)]*\): |Backup of VM \d+ failed - )?")
#: Matches the status of a Proxmox task that failed because a program failed. The last lines of the task's log are the
#: output of the program, in which lines about errors have no special beginning.
_FAILED_PROGRAM = re.compile(r"command '.{1,300}' failed: exit code|startup for container '\d+' failed")
#: Matches the beginning of a line of a program's output that is not about an error.
_NO_ERROR = re.compile(r"(?:INFO|WARN|WARNING): ")


def task_types(change_result: str, kind: str) -> tuple[str, ...]:
    """Return the types of the Proxmox tasks that a change with this result creates; () if it creates none."""
    return TASK_TYPES.get((change_result, kind), ())


def newest_first(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the Proxmox tasks, newest first.

    Proxmox tasks that started in the same second are sorted by `pstart`, the start time of the process in clock ticks.
    """
    return sorted(tasks, key=lambda task: (int(task.get("starttime") or 0), int(task.get("pstart") or 0)), reverse=True)


def is_running(task: dict[str, Any]) -> bool:
    """Return True for a running Proxmox task, which has no status or the status RUNNING."""
    return task.get("status") in (None, "", "RUNNING")


def has_failed(task: dict[str, Any]) -> bool:
    """Return True for an ended Proxmox task whose status is neither OK nor WARNINGS."""
    return not is_running(task) and not re.match(r"OK\b|WARN", str(task["status"]))


def is_task_outcome_unknown(task: dict[str, Any]) -> bool:
    """Return True for an ended Proxmox task if Proxmox does not know whether the task did its work."""
    return not is_running(task) and bool(_UNKNOWN_OUTCOME.match(str(task["status"])))


def has_failure_cause(text: str) -> bool:
    """Return True if `classify_failure` returns a specific error code for `text`, a status or a log line.

    If the code for the status of a failed Proxmox task is not specific, the log of the task must be read.
    """
    return classify_failure(text).code not in _UNSPECIFIC_CODES


def error_with_cause(status: str, log: list[str]) -> str:
    """Return the error text of a failed Proxmox task: its status, and the cause that the end of its log names.

    The cause is, in this order of preference:
    - among the lines about an error, the last line with a specific error code (see `has_failure_cause`)
    - the last line about an error
    - if the status says that a program failed, the last line of the program's output with a specific error code

    If the log has no cause, the status alone is returned. If the status says that the outcome is unknown, a cause with
    a specific error code is returned without the status.
    """
    lines = [_TIMESTAMP.sub("", line).strip() for line in log[-_SEARCHED_LINES:]]
    lines = [line for line in lines if not line.startswith("TASK ")]  # the last line of a log repeats the status
    causes = [_CAUSE_PREFIX.sub("", line) for line in lines if _CAUSE_LINE.match(line)]
    causes = [cause for cause in causes if cause and cause not in status]
    # Whether the last lines of the log are the output of a failed program.
    is_program_output = not causes and _FAILED_PROGRAM.search(status)
    program_output = [line for line in lines if not _NO_ERROR.match(line)] if is_program_output else []
    specific_causes = [cause for cause in causes or program_output if has_failure_cause(cause)]
    if specific_causes and _UNKNOWN_OUTCOME.match(status):
        return specific_causes[-1]  # only the log shows how the Proxmox task ended
    cause = specific_causes[-1] if specific_causes else causes[-1] if causes else ""
    return f"{status}: {cause}" if cause else status


def as_listed_task(status: dict[str, Any]) -> dict[str, Any]:
    """Return the status of a Proxmox task in the form of an entry of Proxmox's list of Proxmox tasks.

    `status` is the answer to `GET /nodes/{node}/tasks/{upid}/status`. The member `status` of an entry is RUNNING or the
    exit status.
    """
    return {**status, "status": status.get("exitstatus") if status.get("status") == "stopped" else "RUNNING"}


def is_started_by(task: dict[str, Any], login: str) -> bool:
    """Return True if the user or token `login` has started the Proxmox task.

    Proxmox lists a token either in `user`, such as `smith@pve!job`, or as `tokenid` beside the user.
    """
    user, _, token = str(task.get("user", "")).partition("!")
    token = str(task.get("tokenid") or token)
    return (f"{user}!{token}" if token else user) == login


def upid_in(answer: dict[str, Any]) -> str:
    """Return the UPID in `answer`, Proxmox's answer to a request or the result of a module; '' if it has none.

    Proxmox's answer has the UPID as `data`. Of community.proxmox's modules, only `proxmox` returns the UPID, as
    `taskid`.
    """
    upids = [str(answer.get(name) or "") for name in ("data", "taskid")]
    return next((upid for upid in upids if upid.startswith("UPID:")), "")


def vmids_in(log: list[str]) -> set[int]:
    """Return the VMIDs in the log of a clone task.

    Proxmox 9 logs `creating a clone of VM … with ID …`. Proxmox 8 logs only the names of volumes, such as
    `vm-123-disk-0`; with some storages it logs no such name. Other numbers in a log are sizes and percentages.
    """
    return {int(vmid) for line in log for pair in _VMID_IN_LOG.findall(line) for vmid in pair if vmid}


def volumes_left_in_log(log: list[str]) -> list[str]:
    """Return the volumes that a qmdestroy task could not remove, from the lines of its log."""
    return [volume for line in log for volume in _VOLUME_NOT_REMOVED.findall(line)]
