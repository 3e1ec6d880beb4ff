"""Defines the statuses of jobs, results and VMs, and the values that one step of a job passes to the next step."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from executor.errors import ErrorCode


class JobStatus(StrEnum):
    """The status of a job in its database row. During `processing`, the row's timestamps show the present step."""

    PENDING = "pending"  #: the job waits until an agent claims it
    PROCESSING = "processing"  #: one agent owns the job, under a lease
    COMPLETED = "completed"  #: the job ended without an error
    FAILED = "failed"  #: the job ended with an error code


#: The statuses that may follow each status. A job changes from processing back to pending when its lease expires, or
#: when its agent releases it for another attempt.
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: frozenset({JobStatus.PROCESSING, JobStatus.FAILED}),
    JobStatus.PROCESSING: frozenset({JobStatus.PENDING, JobStatus.COMPLETED, JobStatus.FAILED}),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset(),
}
#: The final statuses: a job with one of them has ended.
ENDED = (JobStatus.COMPLETED, JobStatus.FAILED)
#: A job whose lease expired this many times ends as failed with QUARANTINED. Its agent has crashed each time.
MAX_CRASHES = 3
#: A job whose lease expired this many times is on probation: the agent runs no other job at the same time. If this job
#: makes the agent crash again, no other job loses its lease and counts a crash.
PROBATION_CRASHES = MAX_CRASHES - 1


class ReportState(StrEnum):
    """Whether FulcrumCore has a job's result."""

    NONE = "none"  #: the job has not ended
    DUE = "due"  #: the job has ended, but FulcrumCore has not acknowledged the result
    REPORTED = "reported"  #: FulcrumCore has the result
    OVERTAKEN = "overtaken"  #: FulcrumCore ended the job itself; the agent keeps its own result in its database only
    ABANDONED = "abandoned"  #: FulcrumCore does not know the job, or another agent has it
    LOCAL = "local"  #: the result is never reported: the agent created the job itself, unknown to FulcrumCore


class GuestKind(StrEnum):
    """The kind of a guest, in the words of the Proxmox API."""

    QEMU = "qemu"  #: a virtual machine
    LXC = "lxc"  #: a container


class MappingState(StrEnum):
    """The state of a mapping, which connects a service to its VM."""

    RESERVED = "reserved"  #: the VMID is reserved; the VM may not exist yet, or be a partial clone
    ACTIVE = "active"  #: the VM exists
    PENDING_DELETION = "pending_deletion"  #: the service was deleted; its VM is stopped and marked for deletion
    DELETED = "deleted"  #: the VM was deleted; its VMID is not used for a new VM during SMITH_VMID_QUARANTINE_S
    VM_LOST = "vm_lost"  #: the VM does not exist any more, and no job of the agent deleted it


class RunStatus(StrEnum):
    """How a run ended, in the words of ansible-runner."""

    SUCCESSFUL = "successful"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELED = "canceled"


@dataclass(frozen=True, kw_only=True)
class PlaybookRun:
    """The parameters of one execution of one playbook, before it starts."""

    ident: str  #: `run_ident`: names the run and its artifacts; it has only letters, digits and dashes
    action: str
    playbook: Path
    vm: dict[str, Any] = field(repr=False)  #: the extra variable `vm` of the playbook; it may contain secrets
    timeout_s: float
    secrets: tuple[str, ...] = field(default=(), repr=False)  #: the values that are masked in the artifacts


@dataclass(frozen=True, kw_only=True)
class RunArtifacts:
    """The files that a run left. `folder` contains `events.jsonl`, `stdout`, `rc` and `status`, with secrets masked."""

    ident: str
    folder: Path
    status: RunStatus
    rc: int  #: the exit code of the playbook process
    started_at: float  #: seconds since the epoch
    ended_at: float


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What the agent concluded from a run: a success with facts about the VM, or an error code and a text."""

    succeeded: bool
    vm: dict[str, Any] = field(default_factory=dict)  #: the playbook's fact `vm_result`, validated; keys may be missing
    code: ErrorCode | None = None
    detail: str = ""
    was_killed: bool = False  #: another process, or the kernel (out of memory), killed the run: its effect is unknown

    @property
    def message(self) -> str:
        """The error message that is sent to FulcrumCore; it is empty after a success."""
        return f"{self.code}: {self.detail}" if self.code else ""
