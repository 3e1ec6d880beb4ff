"""Defines the statuses of a job, and the values that one step of its processing passes to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from executor.errors import ErrorCode


class JobStatus(StrEnum):
    """The status of a job's row. Within `processing`, the row's timestamps show the step."""

    PENDING = "pending"  #: waits to be claimed
    PROCESSING = "processing"  #: owned by one agent, under a lease
    COMPLETED = "completed"  #: ended without an error
    FAILED = "failed"  #: ended with an error code


#: The allowed transitions. A job returns to pending when its lease expires, or when another attempt follows.
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: frozenset({JobStatus.PROCESSING, JobStatus.FAILED}),
    JobStatus.PROCESSING: frozenset({JobStatus.PENDING, JobStatus.COMPLETED, JobStatus.FAILED}),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset(),
}
#: Final statuses.
ENDED = (JobStatus.COMPLETED, JobStatus.FAILED)
#: A job whose lease expired this often fails as QUARANTINED.
MAX_CRASHES = 3
#: A job whose lease expired this often is on probation and runs alone: if the agent crashes again, no other job is
#: running that would be quarantined with it.
PROBATION_CRASHES = MAX_CRASHES - 1


class ReportState(StrEnum):
    """Whether FulcrumCore has a job's result."""

    NONE = "none"  #: the job has not ended
    DUE = "due"  #: the job has ended, FulcrumCore has not acknowledged the result
    REPORTED = "reported"  #: FulcrumCore has the result
    OVERTAKEN = "overtaken"  #: FulcrumCore ended the job itself; our result stays in our database only
    ABANDONED = "abandoned"  #: FulcrumCore does not know the job, or another agent has it
    LOCAL = "local"  #: never reported: the agent created the job, FulcrumCore does not know it


class GuestKind(StrEnum):
    """The kind of a guest, as Proxmox names it."""

    QEMU = "qemu"  #: a virtual machine
    LXC = "lxc"  #: a container


class MappingState(StrEnum):
    """The state of a service's VM."""

    RESERVED = "reserved"  #: the VMID is reserved, the VM may be a partial clone
    ACTIVE = "active"  #: the VM exists
    PENDING_DELETION = "pending_deletion"  #: the service has ended; the VM is stopped and marked, and deleted later
    DELETED = "deleted"  #: the VM is deleted; its VMID is in quarantine for a while
    VM_LOST = "vm_lost"  #: the VM does not exist any more, and no job of the agent deleted it


class RunStatus(StrEnum):
    """How a run ended, as ansible-runner names it."""

    SUCCESSFUL = "successful"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELED = "canceled"


@dataclass(frozen=True, kw_only=True)
class PlaybookRun:
    """One execution of one playbook, planned but not started."""

    ident: str  #: name of the run and its artifacts; letters, digits and dashes
    action: str
    playbook: Path
    vm: dict[str, Any] = field(repr=False)  #: the extra var `vm`; may hold secrets
    timeout_s: float
    secrets: tuple[str, ...] = field(default=(), repr=False)  #: values to mask in the artifacts


@dataclass(frozen=True, kw_only=True)
class RunArtifacts:
    """The files of a run. `folder` contains `events.jsonl`, `stdout`, `rc` and `status`, with secrets masked."""

    ident: str
    folder: Path
    status: RunStatus
    rc: int
    started_at: float  #: seconds since the epoch
    ended_at: float


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What was concluded from a run: a success with facts about the VM, or an error code and a text."""

    succeeded: bool
    vm: dict[str, Any] = field(default_factory=dict)  #: `vm_result` of the playbook, validated; may be partial
    code: ErrorCode | None = None
    detail: str = ""
    was_killed: bool = False  #: another process or the kernel (out of memory) killed the run: its effect is unknown

    @property
    def message(self) -> str:
        """The message of a failure for FulcrumCore; '' after a success."""
        return f"{self.code}: {self.detail}" if self.code else ""
