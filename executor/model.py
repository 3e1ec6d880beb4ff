"""The words of a job: its statuses, and the frozen values that pass between the steps of the walk."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from executor.errors import ErrorCode


class JobStatus(StrEnum):
    """Where a job row is; the finer step is told by its timestamps."""

    PENDING = "pending"  #: known, nobody works on it
    PROCESSING = "processing"  #: owned by one agent, under a lease
    COMPLETED = "completed"  #: ended well
    FAILED = "failed"  #: ended with an error code


#: The only moves there are. Back to pending: a lease ran out, or an attempt is to be repeated.
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: frozenset({JobStatus.PROCESSING, JobStatus.FAILED}),
    JobStatus.PROCESSING: frozenset({JobStatus.PENDING, JobStatus.COMPLETED, JobStatus.FAILED}),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset(),
}
#: Statuses from which nothing moves any more.
ENDED = (JobStatus.COMPLETED, JobStatus.FAILED)
#: A job whose owner vanished this often is not tried again.
MAX_CRASHES = 3
#: A job that was under way in so many deaths of agents runs alone: the next death shows whether it is to blame, and
#: none of its neighbours is put in quarantine for it.
PROBATION_CRASHES = MAX_CRASHES - 1


class ReportState(StrEnum):
    """What FulcrumCore knows of a job's end."""

    NONE = "none"  #: the job has not ended
    DUE = "due"  #: ended, FulcrumCore has not acknowledged it
    REPORTED = "reported"  #: FulcrumCore holds our outcome
    OVERTAKEN = "overtaken"  #: FulcrumCore ended the job by itself; our result is kept here
    ABANDONED = "abandoned"  #: FulcrumCore does not know the job any more, or it is not ours
    LOCAL = "local"  #: never to be reported (a job that FulcrumCore has never seen)


class GuestKind(StrEnum):
    """What serves a service; Proxmox's own words."""

    QEMU = "qemu"  #: a virtual machine
    LXC = "lxc"  #: a container


class MappingState(StrEnum):
    """What a service's VM is to us."""

    RESERVED = "reserved"  #: the VMID is set aside, the VM may be half made
    ACTIVE = "active"  #: the VM exists and is the service's
    PENDING_DELETION = "pending_deletion"  #: the service has ended; the VM is stopped and marked, and deleted later
    DELETED = "deleted"  #: the VM is gone; its VMID rests
    VM_LOST = "vm_lost"  #: the VM is gone, and no job of ours deleted it


class RunStatus(StrEnum):
    """How one playbook run ended; ansible-runner's own words."""

    SUCCESSFUL = "successful"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELED = "canceled"


@dataclass(frozen=True, kw_only=True)
class PlaybookRun:
    """One execution of one playbook, decided but not started."""

    ident: str  #: names the artifacts; letters, digits and dashes
    action: str
    playbook: Path
    vm: dict[str, Any] = field(repr=False)  #: the extra var `vm`; may hold secrets
    timeout_s: float
    secrets: tuple[str, ...] = field(default=(), repr=False)  #: values that no artifact may show


@dataclass(frozen=True, kw_only=True)
class RunArtifacts:
    """What a run left behind: `folder` holds `events.jsonl`, `stdout`, `rc` and `status`, redacted."""

    ident: str
    folder: Path
    status: RunStatus
    rc: int
    started_at: float  #: seconds since the epoch
    ended_at: float


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What we concluded: either a success with the VM's facts, or a code and a text."""

    succeeded: bool
    vm: dict[str, Any] = field(default_factory=dict)  #: `vm_result` of the playbook, validated; may be partial
    code: ErrorCode | None = None
    detail: str = ""
    was_killed: bool = False  #: somebody else ended the run, or memory ran out: its outcome is anybody's guess

    @property
    def message(self) -> str:
        """What FulcrumCore is told about a failure."""
        return f"{self.code}: {self.detail}" if self.code else ""
