"""Defines the exceptions, named after the reaction that each requires, the exit codes and the error codes.

SmithError
├── SettingsError        a person must act: exit 3
├── DatabaseError        a person must act: exit 6
│   ├── DatabaseUnavailable  try again later
│   └── DatabaseRefused      never try the same again
├── FulcrumError
│   ├── FulcrumUnavailable      try again later
│   │   └── FulcrumAuthFailing  retry with a backoff, never exit
│   └── FulcrumRefused          never try the same again
│       └── FulcrumNotFound     the requested object does not exist (any more)
├── JobError(code, detail)      fail this job with that code
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
#: The agent process asks its supervisor to start a new one: it has reached a limit, and has drained.
EXIT_RESTART = 10


class ErrorCode(StrEnum):
    """The first word of a failed job's message. FulcrumCore's lifecycles match it, so a code is never renamed."""

    VM_NOT_FOUND = "VM_NOT_FOUND"  #: the service's VM does not exist, confirmed by a second query
    VM_NOT_RUNNING = "VM_NOT_RUNNING"  #: the action needs a running VM
    VM_STATE = "VM_STATE"  #: the VM's state forbids the action
    VM_IDENTITY_MISMATCH = "VM_IDENTITY_MISMATCH"  #: the VM may not be the service's; nothing was changed
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
    PVE_API_ERROR = "PVE_API_ERROR"  #: Proxmox answered with another error
    TASK_FAILED = "TASK_FAILED"  #: the Proxmox task ended with an error
    TASK_TIMEOUT = "TASK_TIMEOUT"  #: the Proxmox task did not end in time
    SHUTDOWN_TIMEOUT = "SHUTDOWN_TIMEOUT"  #: the guest did not shut down in time
    GUEST_NO_ADDRESS = "GUEST_NO_ADDRESS"  #: the guest agent reported no IP address in time
    INVALID_REQUEST = "INVALID_REQUEST"  #: the job's properties are invalid
    SECRET_MISSING = "SECRET_MISSING"  # noqa: S105  #: a secret of the job is not in the vault any more
    UNSUPPORTED_ACTION = "UNSUPPORTED_ACTION"  #: there is no playbook for the action
    PLAYBOOK_FAILED = "PLAYBOOK_FAILED"  #: the playbook failed for another reason
    RESULT_INVALID = "RESULT_INVALID"  #: the playbook published no valid result
    DEADLINE = "DEADLINE"  #: the job cannot end before FulcrumCore times it out
    CANCELLED = "CANCELLED"  #: an operator cancelled the job
    AGENT_RESTARTED = "AGENT_RESTARTED"  #: the agent stopped while the job ran, and could not repeat it
    QUARANTINED = "QUARANTINED"  #: the agent crashed three times while it ran the job
    INTERNAL = "INTERNAL"  #: a defect of Agent Smith


class SmithError(Exception):
    """Base of all exceptions of this program."""


class SettingsError(SmithError):
    """A setting is missing or invalid. The text names the variable, its purpose and an example."""


class DatabaseError(SmithError):
    """The database cannot be used: newer schema, access denied, damaged, or in use by another executor."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be used now: it is locked or failing over, its disk is full, or no connection is free."""


class DatabaseRefused(DatabaseError):
    """The database refused a statement: wrong schema, missing privilege, or violated constraint."""


class FulcrumError(SmithError):
    """A request to FulcrumCore failed.

    `status` is the HTTP status, None without an answer; `retry_after_s` is FulcrumCore's `Retry-After`.
    """

    def __init__(self, text: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after_s = retry_after_s


class FulcrumUnavailable(FulcrumError):
    """No answer, or an answer that may change: try again later."""


class FulcrumAuthFailing(FulcrumUnavailable):
    """401 or 403. A revoked token and an outage of FulcrumCore's database give the same: back off, never exit."""


class FulcrumRefused(FulcrumError):
    """FulcrumCore refused the request: never send the same request again."""


class FulcrumNotFound(FulcrumRefused):
    """404: a vault reference, a type or a metric's service that does not exist (any more)."""


class JobError(SmithError):
    """This job fails with `code`. `detail` is sent to FulcrumCore, so it is short and without secrets."""

    def __init__(self, code: ErrorCode | str, detail: str) -> None:
        self.code = ErrorCode(code)
        self.detail = detail
        super().__init__(f"{self.code}: {detail}")


class StaleJob(SmithError):
    """Another owner or an operator changed the job after it was read: skip it."""
