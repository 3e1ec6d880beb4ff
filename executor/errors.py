"""Defines the exit codes of the command `smith`, the error codes of failed jobs, and the exceptions.

The class of an exception tells the caller how to react. This tree shows the reactions. Where a subclass has a reaction
of its own, this reaction replaces the reaction of the base class.

SmithError
├── SettingsError        an operator must act: exit with code 3
├── DatabaseError        an operator must act: exit with code 6
│   ├── DatabaseUnavailable  try again later
│   └── DatabaseRefused      never send the same statement again
├── FulcrumError
│   ├── FulcrumUnavailable      try again later
│   │   └── FulcrumAuthFailing  retry with a backoff, and never exit
│   └── FulcrumRefused          never send the same request again
│       └── FulcrumNotFound     the requested object does not exist, or was deleted
├── JobError(code, detail)      end this job as failed, with `code` as its error code
└── StaleJob                    another owner or an operator changed the job first: skip it
"""

from __future__ import annotations

from enum import StrEnum

#: Exit codes of the `smith` command.
EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_SETTINGS = 3
EXIT_FULCRUM = 4
EXIT_PROXMOX = 5
EXIT_DATABASE = 6
#: The agent process has reached one of its limits, such as SMITH_MAX_JOBS, and its running jobs have ended. The
#: supervisor must start a new agent process.
EXIT_RESTART = 10


class ErrorCode(StrEnum):
    """The error code of a failed job. It is the first word of the error message that FulcrumCore receives.

    The service types in FulcrumCore match the code with regular expressions, so a code is never renamed.
    """

    VM_NOT_FOUND = "VM_NOT_FOUND"  #: the service's VM does not exist, as a second query confirmed
    VM_NOT_RUNNING = "VM_NOT_RUNNING"  #: the action needs a running VM
    VM_STATE = "VM_STATE"  #: the VM's state forbids the action
    VM_IDENTITY_MISMATCH = "VM_IDENTITY_MISMATCH"  #: the VM may belong to another service; nothing was changed
    VM_PROTECTED = "VM_PROTECTED"  #: a protection of the VM or the template forbids the action
    VM_LOCKED = "VM_LOCKED"  #: Proxmox holds a lock on the VM or a storage
    VM_ID_TAKEN = "VM_ID_TAKEN"  #: the VMID belongs to another guest
    NOT_FOUND = "NOT_FOUND"  #: the template, node, pool or snapshot does not exist
    CAPACITY = "CAPACITY"  #: no disk space, memory or VMID is left
    STORAGE_UNAVAILABLE = "STORAGE_UNAVAILABLE"  #: the storage is offline or unknown
    NODE_DOWN = "NODE_DOWN"  #: the node does not answer
    PVE_AUTH = "PVE_AUTH"  #: Proxmox refuses the credentials
    PVE_PERMISSION = "PVE_PERMISSION"  #: the token lacks a privilege
    PVE_TLS = "PVE_TLS"  #: Proxmox's certificate could not be verified
    PVE_NO_QUORUM = "PVE_NO_QUORUM"  #: the cluster has no quorum
    PVE_TIMEOUT = "PVE_TIMEOUT"  #: Proxmox did not answer in time; the outcome is unknown
    PVE_UNREACHABLE = "PVE_UNREACHABLE"  #: the agent cannot connect to Proxmox
    PVE_CONFLICT = "PVE_CONFLICT"  #: another client changed the VM at the same time
    PVE_API_ERROR = "PVE_API_ERROR"  #: Proxmox answered with an error that has no other code
    TASK_FAILED = "TASK_FAILED"  #: the Proxmox task ended with an error
    TASK_TIMEOUT = "TASK_TIMEOUT"  #: the Proxmox task did not end in time
    SHUTDOWN_TIMEOUT = "SHUTDOWN_TIMEOUT"  #: the guest did not shut down in time
    GUEST_NO_ADDRESS = "GUEST_NO_ADDRESS"  #: the guest agent reported no IP address in time
    INVALID_REQUEST = "INVALID_REQUEST"  #: the job's properties are invalid
    SECRET_MISSING = "SECRET_MISSING"  # noqa: S105  #: FulcrumCore's vault no longer has a secret of the job
    UNSUPPORTED_ACTION = "UNSUPPORTED_ACTION"  #: there is no playbook for the action
    PLAYBOOK_FAILED = "PLAYBOOK_FAILED"  #: the playbook failed for another reason
    RESULT_INVALID = "RESULT_INVALID"  #: the playbook published no valid result
    DEADLINE = "DEADLINE"  #: the job cannot end within FulcrumCore's time limit
    CANCELLED = "CANCELLED"  #: an operator cancelled the job
    AGENT_RESTARTED = "AGENT_RESTARTED"  #: the agent stopped while the job ran, and the job could not be repeated
    QUARANTINED = "QUARANTINED"  #: the agent crashed three times while it ran the job
    INTERNAL = "INTERNAL"  #: a defect of Agent Smith


class SmithError(Exception):
    """Base of all exceptions of this program."""


class SettingsError(SmithError):
    """A setting is missing or invalid. The text of the exception tells the operator what to correct."""


class DatabaseError(SmithError):
    """The database cannot be used: it is too new, damaged, denies access, or is in use by another agent."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be used now: it is locked or failing over, its disk is full, or no connection is free."""


class DatabaseRefused(DatabaseError):
    """The database refused a statement: the schema is wrong, a privilege is missing, or a constraint is violated."""


class FulcrumError(SmithError):
    """A request to FulcrumCore failed.

    `status` is the HTTP status; it is None if FulcrumCore did not answer. `retry_after_s` is the value of the
    `Retry-After` header in seconds; it is None if the header was missing.
    """

    def __init__(self, text: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after_s = retry_after_s


class FulcrumUnavailable(FulcrumError):
    """FulcrumCore did not answer, or may give another answer later: the caller tries again later."""


class FulcrumAuthFailing(FulcrumUnavailable):
    """FulcrumCore answered 401 or 403: the caller retries with a backoff, and the agent never exits for this error.

    FulcrumCore gives these answers if the token was revoked. While its database is down, it gives them to every token.
    """


class FulcrumRefused(FulcrumError):
    """FulcrumCore refused the request: the caller must never send the same request again."""


class FulcrumNotFound(FulcrumRefused):
    """FulcrumCore answered 404: the secret, the type, or the service of a metric does not exist (any more).

    If a job or a service itself is requested and does not exist, FulcrumCore answers 403, not 404.
    """


class JobError(SmithError):
    """The caller ends the job as failed with the error code `code`.

    `detail` is sent to FulcrumCore, so it is short and contains no secret.
    """

    def __init__(self, code: ErrorCode | str, detail: str) -> None:
        self.code = ErrorCode(code)
        self.detail = detail
        super().__init__(f"{self.code}: {detail}")


class StaleJob(SmithError):
    """Another owner or an operator changed the job after this process read it: the caller skips the job."""
