# SPDX-License-Identifier: Apache-2.0
"""Interprets the Proxmox tasks that Proxmox lists, and their logs. Pure functions."""

from __future__ import annotations

import re
from typing import Any

from .shared.error_rules import classify_failure

#: The types of the Proxmox tasks that a change creates, by the change and the kind of guest. The types `ha…` are those
#: of a guest that the HA manager starts, stops or migrates. A change without a row creates no Proxmox task.
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
    ("restarted", "lxc"): ("vzshutdown", "hastop", "vzstart", "hastart"),  # the action stops and starts a container
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
#: A VMID in a line of a clone task's log, in one of two groups.
_VMID_IN_LOG = re.compile(r"\bID (\d+)\b|\bvm-(\d+)-")

#: A line of a qmdestroy task's log about a volume that Proxmox could not remove: a disk, a disk on a storage that does
#: not exist any more, or an image of an interrupted backup. Proxmox 8 ends such a task with OK, Proxmox 9 with
#: WARNINGS; the VM is destroyed in both cases.
_VOLUME_NOT_REMOVED = re.compile(
    r"(?:Could not remove disk|failed to get path and owner of volume|error removing fleecing image) '([^']+)'"
)


#: The status of a Proxmox task whose outcome is unknown: its worker was killed, or its log was removed.
_UNKNOWN_END = re.compile(
    r"unexpected status|interrupted by signal|received interrupt|unable to get last line from task log|no such task"
)
#: The codes of a status that does not name the cause of a failure, such as `migration aborted` or `job errors`.
_CODES_WITHOUT_CAUSE = ("TASK_FAILED", "PLAYBOOK_FAILED", "PVE_TIMEOUT")
#: How many lines at the end of a log are searched for the cause. Earlier lines belong to steps that succeeded.
_CAUSE_LINES = 30
#: The time at the beginning of a line, which only some types of Proxmox tasks write.
_TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
#: The beginning of a line about an error: of a backup, a migration, QEMU, or a container's start. Other lines describe
#: steps, even if a rule for errors matches them: one matches `starting online/live migration on …`.
_CAUSE_LINE = re.compile(r"^(?:ERROR: |kvm: (?!(?:.*: )?warning: )|lxc-start: |lxc: |command '[^']+' failed)")
#: The part of such a line that only repeats that the Proxmox task failed.
_CAUSE_PREFIX = re.compile(r"^ERROR: (?:migration aborted \([^)]*\): |Backup of VM \d+ failed - )?")
#: The status of a Proxmox task that failed because a program failed. The last lines of its log are the output of the
#: program, in which lines about errors have no special beginning.
_FAILED_PROGRAM = re.compile(r"command '.{1,300}' failed: exit code|startup for container '\d+' failed")
#: The beginning of a program's line that is not about an error.
_NO_ERROR = re.compile(r"(?:INFO|WARN|WARNING): ")


def task_types(change: str, kind: str) -> tuple[str, ...]:
    """Return the types of the Proxmox tasks that a change of a guest of this kind creates."""
    return TASK_TYPES.get((change, kind), ())


def newest_first(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort Proxmox tasks by their start time in seconds, then by `pstart`, their start time in clock ticks."""
    return sorted(tasks, key=lambda task: (int(task.get("starttime") or 0), int(task.get("pstart") or 0)), reverse=True)


def is_running(task: dict[str, Any]) -> bool:
    """Return True for a running Proxmox task, which has no status or the status RUNNING."""
    return task.get("status") in (None, "", "RUNNING")


def failed(task: dict[str, Any]) -> bool:
    """Return True for a finished Proxmox task whose status is neither OK nor WARNINGS."""
    return not is_running(task) and not re.match(r"OK\b|WARN", str(task["status"]))


def is_end_unknown(task: dict[str, Any]) -> bool:
    """Return True for an ended Proxmox task of which Proxmox does not know whether it did its work."""
    return not is_running(task) and bool(_UNKNOWN_END.match(str(task["status"])))


def needs_log(status: str) -> bool:
    """Return True if the status of a failed Proxmox task does not name the cause, so that its log must be read."""
    return classify_failure(status).code in _CODES_WITHOUT_CAUSE


def error_with_cause(status: str, log: list[str]) -> str:
    """Return the error text of a failed Proxmox task: its status, and the cause that the end of its log names.

    If there are several causes, the last one whose text alone determines an error code is used. Only a line about an
    error is a cause. So if a log was cut off and has only lines about steps, the outcome of the Proxmox task stays
    unknown.
    """
    lines = [_TIMESTAMP.sub("", line).strip() for line in log[-_CAUSE_LINES:]]
    lines = [line for line in lines if not line.startswith("TASK ")]
    causes = [_CAUSE_PREFIX.sub("", line) for line in lines if _CAUSE_LINE.match(line)]
    causes = [cause for cause in causes if cause and cause not in status]
    is_program_output = not causes and _FAILED_PROGRAM.search(status)
    program_output = [line for line in lines if not _NO_ERROR.match(line)] if is_program_output else []
    known_causes = [cause for cause in causes or program_output if not needs_log(cause)]
    if known_causes and _UNKNOWN_END.match(status):
        return known_causes[-1]  # the log shows how the task ended, although the status does not
    cause = known_causes[-1] if known_causes else causes[-1] if causes else ""
    return f"{status}: {cause}" if cause else status


def as_listed(status: dict[str, Any]) -> dict[str, Any]:
    """Return Proxmox's answer about a single Proxmox task in the form in which Proxmox lists Proxmox tasks."""
    return {**status, "status": status.get("exitstatus") if status.get("status") == "stopped" else "RUNNING"}


def is_started_by(task: dict[str, Any], login: str) -> bool:
    """Return True if the user or token `login` has started the Proxmox task.

    Proxmox lists a token either in `user`, such as `smith@pve!job`, or as `tokenid` beside the user.
    """
    user, _, token = str(task.get("user", "")).partition("!")
    token = str(task.get("tokenid") or token)
    return (f"{user}!{token}" if token else user) == login


def upid_in(answer: dict[str, Any]) -> str:
    """Return the UPID in the answer to a change; '' if it has none.

    Proxmox's answer to a request has the UPID as `data`. Of community.proxmox's modules, only `proxmox` returns it, as
    `taskid`.
    """
    upids = [str(answer.get(name) or "") for name in ("data", "taskid")]
    return next((upid for upid in upids if upid.startswith("UPID:")), "")


def vmids_in(log: list[str]) -> set[int]:
    """Return the VMIDs that the log of a clone task names.

    Proxmox 9 logs `creating a clone of VM … with ID …`. Proxmox 8 logs only the names of volumes, such as
    `vm-123-disk-0`; with some storages it logs no such name. Other numbers in a log are sizes and percentages.
    """
    return {int(vmid) for line in log for pair in _VMID_IN_LOG.findall(line) for vmid in pair if vmid}


def volumes_left_in(log: list[str]) -> list[str]:
    """Return the volumes that a qmdestroy task could not remove, as its log states."""
    return [volume for line in log for volume in _VOLUME_NOT_REMOVED.findall(line)]
