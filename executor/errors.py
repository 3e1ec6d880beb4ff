"""Defines the exit codes of the command `smith`, and the exceptions.

The class of an exception tells the caller how to react. This tree shows the reactions. The
reaction of a subclass replaces the reaction of its base class.

SmithError
├── SettingsError        an operator must act: exit with code 3
├── DatabaseError        an operator must act: exit with code 6
│   ├── DatabaseUnavailable  try again later
│   │   └── DatabaseLocked       try again later; at the start of a critical job: skip this execution
│   ├── StatementRefused      never send the same statement again
│   └── SchemaTooNew         exit with code 6. Exception: on PostgreSQL, `smith run` waits until an operator upgrades
│                        Agent Smith; with --once or with --until-idle it exits with code 6
├── FulcrumError
│   ├── FulcrumUnavailable      try again later
│   │   └── FulcrumAuthError  retry with a backoff, and never exit
│   └── FulcrumRefused          never send the same request again
│       └── FulcrumNotFound     never send it again: the requested object does not exist
├── JobError(code, detail)      end this job as failed, with `code` as its error code
└── StaleJob                    another owner or an operator changed the job first: skip it
"""

from __future__ import annotations

from executor.shared.error_codes import ErrorCode

#: Exit codes of the `smith` command.
EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_SETTINGS = 3
EXIT_FULCRUM = 4
EXIT_PROXMOX = 5
EXIT_DATABASE = 6
#: A command worked on several VMs, and failed for some of them.
EXIT_SOME_FAILED = 7
#: The agent process has reached one of its limits, such as SMITH_MAX_JOBS, and its running jobs have ended. Its
#: parent process (the supervisor) must start a new agent process.
EXIT_RESTART = 10


class SmithError(Exception):
    """Base of all exceptions of this program."""


class SettingsError(SmithError):
    """A setting is missing or invalid. The text of the exception tells the operator what to correct."""


class DatabaseError(SmithError):
    """The database cannot be used: its schema is too new, it is damaged, it denies access, or another agent uses it."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be used now: it is locked or failing over, its disk is full, or no connection is free."""


class DatabaseLocked(DatabaseUnavailable):
    """Another process, for example a suspended process, holds a lock of the PostgreSQL database for too long."""


class StatementRefused(DatabaseError):
    """The database refused a statement: the schema is wrong, a privilege is missing, or a constraint is violated."""


class SchemaTooNew(DatabaseError):
    """A newer version of Agent Smith has migrated the schema, and this version does not know the new schema."""


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
    """FulcrumCore did not answer, or answered with an error that may be temporary: the caller tries again later."""


class FulcrumAuthError(FulcrumUnavailable):
    """FulcrumCore answered 401 or 403: the caller retries with a backoff, and the agent never exits for this error.

    FulcrumCore gives these answers if the token was revoked. While FulcrumCore's database is down, it gives these
    answers to every token. It also answers 403 for a job or a service that does not exist or belongs to another agent.
    After several 403 answers, `agent/refusals.py` decides whether the job or service is gone.
    """


class FulcrumRefused(FulcrumError):
    """FulcrumCore refused the request: the caller must never send the same request again."""


class FulcrumNotFound(FulcrumRefused):
    """FulcrumCore answered 404: a requested secret does not exist, or a metric value has an unknown type or service.

    An invalid reference to a secret raises this error without a request. A request that reads or changes an unknown job
    or service gets the answer 403 instead (FulcrumAuthError).
    """


class JobError(SmithError):
    """The caller ends the job as failed with the error code `code`.

    `detail` is sent to FulcrumCore, which shows it to tenants (the customers who use the services). It is short and
    contains no secret. It never says how much space is free. It names a Proxmox node or a template only if the job
    names the same one. `operator_detail` is the text for the log and for `smith jobs show`. It may name any Proxmox
    node or template, and may say how much space is free. If `operator_detail` is empty, `detail` is used.
    """

    def __init__(self, code: ErrorCode | str, detail: str, operator_detail: str = "") -> None:
        self.code = ErrorCode(code)
        self.detail = detail
        self.operator_detail = operator_detail or detail
        super().__init__(f"{self.code}: {self.operator_detail}")


class StaleJob(SmithError):
    """Another owner or an operator changed the job after this process read it: the caller skips the job."""
