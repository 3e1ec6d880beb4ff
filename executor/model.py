"""Defines the statuses of jobs, results and VMs, and the values that one step of a job passes to the next step."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from executor.shared.error_codes import ErrorCode


class JobStatus(StrEnum):
    """The status of a job in its database row.

    The timestamps in the row show which steps of a `processing` job are done. An agent that claims a job owns it for a
    limited time (a lease), and renews the lease while it works on the job.
    """

    PENDING = "pending"  #: the job waits until an agent claims it
    PROCESSING = "processing"  #: one agent owns the job, under a lease
    COMPLETED = "completed"  #: the job ended without an error
    FAILED = "failed"  #: the job ended with an error code


#: The statuses that may follow each status. A job changes from processing back to pending if its lease expires, or if
#: its agent requeues it for another attempt or releases it.
JOB_STATUS_TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: frozenset({JobStatus.PROCESSING, JobStatus.FAILED}),
    JobStatus.PROCESSING: frozenset({JobStatus.PENDING, JobStatus.COMPLETED, JobStatus.FAILED}),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset(),
}
#: The statuses of a job that has ended.
ENDED_STATUSES = (JobStatus.COMPLETED, JobStatus.FAILED)
#: If the agent crashes while it runs a job, the job's lease expires. Each expired lease of a job counts as one crash. A
#: job with MAX_CRASHES crashes ends as failed, with the error code QUARANTINED.
MAX_CRASHES = 3
#: A job with this many crashes is on probation: the agent runs no other job at the same time. So if the job makes the
#: agent crash again, the crash is counted for this job only.
MIN_CRASHES_FOR_PROBATION = MAX_CRASHES - 1


class ActionEffect(StrEnum):
    """The effect of an action on a VM."""

    READS = "reads"  #: changes nothing
    CHANGES = "changes"  #: changes the VM
    DESTROYS = "destroys"  #: destroys the VM or data in it


class ReportState(StrEnum):
    """The state of the report of a job's result to FulcrumCore."""

    NONE = "none"  #: the job has not ended
    DUE = "due"  #: the job has ended, but FulcrumCore has not acknowledged the result
    REPORTED = "reported"  #: FulcrumCore has acknowledged the result
    #: FulcrumCore refused the report, because FulcrumCore itself had ended the job, for example after the job timeout.
    #: The agent's result is only in the agent's database. The stored value is an older name of this state.
    ENDED_BY_FULCRUM = "overtaken"
    #: not reported: in FulcrumCore, the job was deleted, was given to another agent, or ended before this agent's claim
    ABANDONED = "abandoned"
    #: not reported: an agent process with the same token but another database has claimed the job. In FulcrumCore, the
    #: job may still be open.
    CLAIMED_ELSEWHERE = "claimed_elsewhere"
    LOCAL = "local"  #: never reported, because the agent created the job itself and FulcrumCore does not know it


#: The states in which the agent sends no report of an ended job. LOCAL is not one of them, because FulcrumCore does not
#: know a local job. If FulcrumCore lists an ended job in one of these states as Pending or Processing,
#: `reopening.reopen` decides what follows: a report, another attempt, or nothing.
SETTLED_REPORT_STATES = (
    ReportState.REPORTED,
    ReportState.ENDED_BY_FULCRUM,
    ReportState.ABANDONED,
    ReportState.CLAIMED_ELSEWHERE,
)


class JobEventKind(StrEnum):
    """The kind of an unusual event of a job. `database/job_events.py` stores these events."""

    REQUEUED = "requeued"  #: an attempt has ended, and the job gets another attempt
    REAPED = "reaped"  #: the job was taken from an agent process that had ended or had not renewed its lease
    #: the job was released, because its agent process stopped, or could not store the end of the attempt
    RELEASED = "released"
    #: FulcrumCore listed the ended job as Pending or Processing. So the job's report became due again, or the job got
    #: another attempt.
    REOPENED = "reopened"
    REPORT_POSTPONED = "report_postponed"  #: the report failed, and the agent retries it after a backoff
    #: FulcrumCore refused the report of a success; the agent then reported a failure, to end the job at FulcrumCore
    RESULT_REPLACED = "result_replaced"


class GuestKind(StrEnum):
    """The kind of a guest, in the words of the Proxmox API."""

    QEMU = "qemu"  #: a virtual machine
    LXC = "lxc"  #: a container


class MappingState(StrEnum):
    """The state of a mapping, which connects a service to its VM."""

    RESERVED = "reserved"  #: the VMID is reserved; the VM does not exist yet, or is not completely configured
    ACTIVE = "active"  #: the VM exists
    PENDING_DELETION = "pending_deletion"  #: the service was deleted; its VM is stopped and marked for deletion
    #: the mapping has ended, for example because its VM was deleted; its VMID is not given to a new VM for
    #: SMITH_VMID_QUARANTINE_S
    DELETED = "deleted"
    VM_LOST = "vm_lost"  #: the VM does not exist any more, and no job of the agent deleted it


class MoveDirection(StrEnum):
    """Says whether `smith db migrate` moved all rows to, or from, another database. Stored in the table `moves`."""

    #: the rows were moved, or are being moved, to another database; this database refuses changes
    TO = "to"
    FROM = "from"  #: the rows of this database came from another database


class RunStatus(StrEnum):
    """How a run ended, in the words of ansible-runner."""

    SUCCESSFUL = "successful"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELED = "canceled"


@dataclass(frozen=True, kw_only=True)
class PlaybookRun:
    """The parameters of one execution of one playbook, before it starts."""

    ident: str  #: the id of the run (`run_ident`), which also names its artifacts; only letters, digits, dashes
    action: str
    playbook: Path
    vm: dict[str, Any] = field(repr=False)  #: the extra variable `vm` of the playbook; it may contain secrets
    timeout_s: float
    secrets: tuple[str, ...] = field(default=(), repr=False)  #: the values that are masked in the artifacts


@dataclass(frozen=True, kw_only=True)
class RunArtifacts:
    """The files that a run has written to `folder`: `events.jsonl`, `stdout`, `rc` and `status`. Secrets are masked."""

    ident: str
    folder: Path
    status: RunStatus
    rc: int  #: the exit code of the playbook process
    started_at: float  #: Unix time in seconds
    ended_at: float
    #: a summary of the run for operators: its Ansible tasks, its Proxmox tasks, and the steps that the Ansible action
    #: plugins reported, such as "cloning the template 9000"
    story: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """The agent's conclusion from a run: either a success with facts about the VM, or an error code with a text."""

    succeeded: bool
    vm: dict[str, Any] = field(default_factory=dict)  #: the playbook's fact `vm_result`, validated; keys may be missing
    code: ErrorCode | None = None  #: None after a success
    detail: str = ""  #: the error text that tenants (customers) may read
    operator_detail: str = ""  #: the error text for operators; '' if it is the same as `detail`
    #: True if it is unknown what the run has changed: the run was killed (for example by a signal, or by its guard
    #: process when the job's lease was not renewed), could not be started, or lost a part of its output. False if the
    #: agent ended the run because it was cancelled or timed out. Then `code` decides whether the job is retried.
    is_effect_unknown: bool = False

    @property
    def message(self) -> str:
        """The error message that is sent to FulcrumCore; it is empty after a success."""
        return f"{self.code}: {self.detail}" if self.code else ""

    @property
    def operator_message(self) -> str:
        """The error message for the operator; it is empty after a success."""
        return f"{self.code}: {self.operator_detail or self.detail}" if self.code else ""
