"""Defines the tables, SQL literals for statuses, and two clocks: `utc_now` of this machine, `db_now` of the database.

Each change of a table needs a migration. A test compares the tables with the migrations. `executor.database.indexes`
defines the indexes.

This module has no `from __future__ import annotations`: with it, the annotations would be texts, and SQLAlchemy would
compile each of these texts at the start of every command that reads the database.
"""

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Integer,
    SQLColumnExpression,
    String,
    Text,
    TypeDecorator,
    false,
    literal,
    literal_column,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.functions import FunctionElement

from executor.model import ENDED_STATUSES, GuestKind, JobStatus, MappingState, ReportState

# These statuses and report states are SQL literals, not bound parameters: SQLite uses a partial index only if the
# text of the statement contains the value.
PENDING_LITERAL: ColumnElement[str] = literal_column(f"'{JobStatus.PENDING}'")
PROCESSING_LITERAL: ColumnElement[str] = literal_column(f"'{JobStatus.PROCESSING}'")
ENDED_LITERALS: list[ColumnElement[str]] = [literal_column(f"'{status}'") for status in ENDED_STATUSES]
DELETED_LITERAL: ColumnElement[str] = literal_column(f"'{MappingState.DELETED}'")
DUE_LITERAL: ColumnElement[str] = literal_column(f"'{ReportState.DUE}'")
CLAIMED_ELSEWHERE_LITERAL: ColumnElement[str] = literal_column(f"'{ReportState.CLAIMED_ELSEWHERE}'")


class UtcDateTime(TypeDecorator[datetime]):
    """A column type for UTC times. SQLite stores no time zone, so this type adds UTC to each value that is read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a time to UTC before it is stored. Raises ValueError for a time without a time zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime reached the database")
        utc_value = value.astimezone(UTC)
        return utc_value.replace(tzinfo=None) if dialect.name == "sqlite" else utc_value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a time that was read from the database to UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class db_now(FunctionElement[datetime]):
    """An SQL expression: the time of the database's clock plus `offset_s` seconds (a number, or an SQL expression).

    Leases use the database's clock, because the clocks of several agents may differ.
    """

    type = UtcDateTime()
    inherit_cache = True  # the offset is a bound parameter, so SQLAlchemy compiles a statement once for all offsets

    def __init__(self, offset_s: float | SQLColumnExpression[float] = 0.0) -> None:
        if isinstance(offset_s, int | float):
            super().__init__(literal(float(offset_s), Float()))
        else:
            super().__init__(offset_s)


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: Any, **kw: Any) -> str:
    # On SQLite, SQLAlchemy stores a DateTime as text in this format, with six digits after the decimal point. `%f`
    # writes only three of these digits, so three zeros follow. SQLite compares times as texts, and texts in this
    # format have the same order as their times.
    offset_s = compiler.process(element.clauses, **kw)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('%+.3f seconds', {offset_s}))"


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: Any, **kw: Any) -> str:
    offset_s = compiler.process(element.clauses, **kw)
    return f"(clock_timestamp() + make_interval(secs => {offset_s}))"


class Base(DeclarativeBase):
    """The base of all tables."""

    type_annotation_map: ClassVar = {datetime: UtcDateTime, dict[str, Any]: JSON(none_as_null=True)}


class Job(Base):
    """A job. Only `job_queue`, `reaping`, `reopening` and `outbox` write this table."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(primary_key=True)
    fulcrum_id: Mapped[str] = mapped_column(String(36), unique=True)
    service_id: Mapped[str | None] = mapped_column(String(36))
    group_id: Mapped[str | None] = mapped_column(String(36))
    tenant_id: Mapped[str | None] = mapped_column(String(36))  #: the participant in FulcrumCore that uses the service
    action: Mapped[str] = mapped_column(String(100))
    params: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    #: The service of the job, as JSON from FulcrumCore's API.
    service: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    defect: Mapped[str | None] = mapped_column(Text)  #: why the job cannot run
    priority: Mapped[int] = mapped_column(Integer, default=1)
    status: Mapped[str] = mapped_column(String(20), default=JobStatus.PENDING)
    #: The number of times that the job got an owner. An attempt that does not count (see `requeue`) is subtracted.
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    crashes: Mapped[int] = mapped_column(Integer, default=0)  #: how often `reaping` has counted a crash of the job
    cancel_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    available_at: Mapped[datetime | None]  #: when the backoff of a pending job ends
    core_created_at: Mapped[datetime]  #: when FulcrumCore created the job
    deadline_at: Mapped[datetime]  #: when FulcrumCore fails the job if it has not ended (FulcrumCore's clock)
    received_at: Mapped[datetime]
    owner: Mapped[str | None] = mapped_column(String(64))  #: `boot_id` of the agent process that claimed the job
    lease_until: Mapped[datetime | None]
    epoch: Mapped[int] = mapped_column(Integer, default=0)  #: the fencing token, which is raised when the owner changes
    #: True while the present attempt waits for a node or a clone slot, before it has started a run.
    is_waiting: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    claim_sent_at: Mapped[datetime | None]  #: when the worker last tried to claim the job at FulcrumCore
    claimed_at: Mapped[datetime | None]  #: when FulcrumCore accepted the claim
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    reported_at: Mapped[datetime | None]
    report_state: Mapped[str] = mapped_column(String(20), default=ReportState.NONE)
    report_attempts: Mapped[int] = mapped_column(Integer, default=0)
    report_after: Mapped[datetime | None]  #: when the backoff of a due report ends
    #: Until this time, only the agent process that has claimed the due report sends it (see `outbox`). The column is
    #: NULL on SQLite, which only one agent uses.
    report_claimed_until: Mapped[datetime | None]
    report_note: Mapped[str | None] = mapped_column(Text)  #: FulcrumCore's answer to the report
    error_code: Mapped[str | None] = mapped_column(String(40))
    error_message: Mapped[str | None] = mapped_column(Text)  #: what FulcrumCore and tenants may read
    operator_detail: Mapped[str | None] = mapped_column(Text)  #: the same error in more detail, for the operator
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    run_ident: Mapped[str | None] = mapped_column(String(64))  #: `Run.ident` of the latest run
    #: What the job adds to the usage of its tenant. It counts while the job is open.
    reserved_vms: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    reserved_cores: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    reserved_memory_mib: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    reserved_disk_gib: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    reserved_snapshots: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    reserved_backups: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")


class Run(Base):
    """One playbook run of a job."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    ident: Mapped[str] = mapped_column(String(64), unique=True)  #: the name of the run and of its artifacts
    attempt: Mapped[int]
    playbook: Mapped[str] = mapped_column(String(100))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    rc: Mapped[int | None]  #: the return code of the run
    status: Mapped[str | None] = mapped_column(String(20))  #: a `RunStatus`
    reason: Mapped[str | None] = mapped_column(Text)  #: the error message that results from the run
    node: Mapped[str | None] = mapped_column(String(64))  #: `boot_id` of the agent process that has the artifacts
    folder: Mapped[str | None] = mapped_column(Text)  #: the path of the folder of the artifacts
    upids: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))  #: ids of the run's Proxmox tasks
    #: What the run has done so far, see `executor.runs.story`. It is read only by queries that ask for it.
    story: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), deferred=True)


class JobEvent(Base):
    """An unusual event of a job, which the job's row does not show. Only `job_events` writes this table."""

    __tablename__ = "job_events"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(20))  #: a `JobEventKind`
    text: Mapped[str] = mapped_column(Text)  #: the reason, for the operator
    attempt: Mapped[int]  #: `Job.attempt` at the time of the event
    count: Mapped[int]  #: how often the same event has happened in a row
    first_at: Mapped[datetime]
    last_at: Mapped[datetime]


class ManualRun(Base):
    """A playbook run that an operator started with a command. Only `manual_runs` writes this table.

    While `ended_at` is NULL and the lease has not expired, no job of the service is claimed.
    """

    __tablename__ = "manual_runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    ident: Mapped[str] = mapped_column(String(64), unique=True)  #: the name of the run
    service_id: Mapped[str] = mapped_column(String(36))
    vmid: Mapped[int | None]
    action: Mapped[str] = mapped_column(String(100))
    who: Mapped[str] = mapped_column(String(100))  #: the operator's user name in the operating system
    host: Mapped[str] = mapped_column(String(255))  #: the host of the process that runs the command
    pid: Mapped[int]
    started_at: Mapped[datetime]
    lease_until: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    status: Mapped[str | None] = mapped_column(String(20))  #: a `RunStatus`
    reason: Mapped[str | None] = mapped_column(Text)  #: the error message that results from the run
    upids: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))  #: ids of the run's Proxmox tasks
    #: The beginning and the end of the playbook's output, without secrets. Only `manual_runs.find` reads it.
    output: Mapped[str | None] = mapped_column(Text, deferred=True)


class Mapping(Base):
    """A mapping of a service to its VM. Only `mappings` and `mapping_transfer` write this table.

    The rows of deleted mappings stay until the pruner deletes them.
    """

    __tablename__ = "mappings"

    id: Mapped[int] = mapped_column(primary_key=True)
    service_id: Mapped[str] = mapped_column(String(36))
    cluster: Mapped[str] = mapped_column(String(100))
    vmid: Mapped[int]
    node: Mapped[str | None] = mapped_column(String(100))
    kind: Mapped[str] = mapped_column(String(10), default=GuestKind.QEMU, server_default=GuestKind.QEMU)
    name: Mapped[str] = mapped_column(String(100))
    marker: Mapped[str] = mapped_column(String(100))  #: the line in the VM's description that names the service
    mac_address: Mapped[str | None] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(20), default=MappingState.RESERVED)
    note: Mapped[str | None] = mapped_column(Text)  #: the reason for the state, if one was stored
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]  #: when the state became deleted
    delete_at: Mapped[datetime | None]  #: the earliest time at which a VM that is pending deletion may be deleted
    tenant_id: Mapped[str | None] = mapped_column(String(36))  #: the participant in FulcrumCore that uses the service
    #: What the VM uses. All are 0 until a create has succeeded, and for a VM whose sizes are not known.
    cores: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    memory_mib: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    disk_gib: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    snapshots: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    backups: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")


class CriticalJob(Base):
    """A critical job: a periodic task of the agent, such as Heartbeat. Only `periods` writes this table."""

    __tablename__ = "critical_jobs"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    interval_s: Mapped[float]
    due_at: Mapped[datetime | None]  #: when the current period ends, so that the next one may start
    last_started_at: Mapped[datetime | None]
    last_finished_at: Mapped[datetime | None]
    last_ok_at: Mapped[datetime | None]  #: when an execution last succeeded
    last_error: Mapped[str | None] = mapped_column(Text)
    failures: Mapped[int] = mapped_column(Integer, default=0)  #: consecutive failed executions
    runs: Mapped[int] = mapped_column(Integer, default=0)  #: the number of executions
    node: Mapped[str | None] = mapped_column(String(64))  #: `boot_id` of the agent process that last executed it


class Node(Base):
    """A row for one start of an agent process, not a Proxmox node. Only `nodes` writes this table."""

    __tablename__ = "nodes"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)  #: `boot_id`, a random id that the process chooses
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    version: Mapped[str] = mapped_column(String(40))
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]  #: when the process was last known to be running
    stopped_at: Mapped[datetime | None]
    stop_reason: Mapped[str | None] = mapped_column(String(40))
    concurrency_wanted: Mapped[int]  #: at most `concurrency`; less if an operator has limited the node
    concurrency: Mapped[int]  #: the maximum number of jobs that the process runs in parallel
    #: True since the process claims no more jobs. It stays True after the process has stopped.
    draining: Mapped[bool] = mapped_column(Boolean, default=False)
    #: The process ends its runs before its leases expire (agent/fence.py). Other agents may then reap its jobs earlier.
    fences: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    installation_id: Mapped[str | None] = mapped_column(String(32))  #: the id of the process's data folder
    proxmox_checked_at: Mapped[datetime | None]  #: when the process last checked whether Proxmox answers
    proxmox_error: Mapped[str | None] = mapped_column(Text)  #: the error of that check, or None
    agent_id: Mapped[str | None] = mapped_column(String(36))  #: FulcrumCore's id of the agent, on PostgreSQL
    cluster: Mapped[str | None] = mapped_column(String(100))  #: SMITH_CLUSTER of the process


class DatabaseUse(Base):
    """The agent of FulcrumCore that uses the database. Only `database_use` writes this table, which has one row."""

    __tablename__ = "database_use"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    agent_id: Mapped[str] = mapped_column(String(36))
    cluster: Mapped[str] = mapped_column(String(100))
    confirmed_at: Mapped[datetime]  #: when a process of the agent last found that FulcrumCore accepts its token


class DriftCheck(Base):
    """The result of the last drift check that could compare everything. Only `drift_checks` writes this table."""

    __tablename__ = "drift_checks"

    cluster: Mapped[str] = mapped_column(String(100), primary_key=True)
    concluded_at: Mapped[datetime]
    findings: Mapped[list[dict[str, Any]]] = mapped_column(JSON(none_as_null=True))


class Allocation(Base):
    """What an agent has allocated to the run for one VM. Other agents read it. Only `allocations` writes this table."""

    __tablename__ = "allocations"

    cluster: Mapped[str] = mapped_column(String(100), primary_key=True)
    vmid: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    boot_id: Mapped[str] = mapped_column(String(64))  #: the agent process
    node: Mapped[str] = mapped_column(String(100))  #: the Proxmox node
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    cores: Mapped[int]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    clone_target: Mapped[str | None] = mapped_column(String(200))  #: set when the clone of a create has started
    is_cloning: Mapped[bool] = mapped_column(Boolean)


class CloneTarget(Base):
    """A storage on which clones run, and how many may run there. Only `allocations` writes this table."""

    __tablename__ = "clone_targets"

    cluster: Mapped[str] = mapped_column(String(100), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    max_clones: Mapped[int]
    successes: Mapped[int]  #: the number of successful clones since the last change of `max_clones`
    highest: Mapped[int]  #: the highest SMITH_CLONES_PER_STORAGE of an agent that has used the target
    used_at: Mapped[datetime]  #: when a clone was last requested there


class Pause(Base):
    """A pause by an operator, in which all agents, or one node, claim no jobs. Only `pauses` writes this table."""

    __tablename__ = "pauses"

    scope: Mapped[str] = mapped_column(String(64), primary_key=True)  #: the agents that are paused, see `pauses`
    since: Mapped[datetime]
    who: Mapped[str] = mapped_column(String(100))  #: the operator, as in the audit
    reason: Mapped[str] = mapped_column(Text)


class NodeLimit(Base):
    """How many jobs a node runs in parallel, as an operator has set it. Only `nodes` writes this table."""

    __tablename__ = "node_limits"

    scope: Mapped[str] = mapped_column(String(64), primary_key=True)  #: the node, see `pauses.scope_of`
    max_jobs: Mapped[int]


class AuditEntry(Base):
    """One change that an operator or the agent made. Only `audit` writes this table.

    Triggers (migrations 0002 and 0006) refuse every DELETE, and every UPDATE except one that erases the values.
    """

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    who: Mapped[str] = mapped_column(String(100))  #: the operator's user name in the operating system, or `agent`
    verb: Mapped[str] = mapped_column(String(40))
    subject_kind: Mapped[str] = mapped_column(String(20))  #: `job`, `mapping`, `service`, `agents` or `database`
    subject_id: Mapped[str] = mapped_column(String(100))
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    reason: Mapped[str | None] = mapped_column(Text)


class SecretReference(Base):
    """The service to which a reference to FulcrumCore's vault is bound. Only `secret_references` writes this table."""

    __tablename__ = "secret_references"

    #: The SHA-256 of the reference, in hexadecimal digits.
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    service_id: Mapped[str] = mapped_column(String(36))
    bound_at: Mapped[datetime]


class WebSession(Base):
    """A login at the pages, which lasts until `expires_at`. Only `web_sessions` writes this table."""

    __tablename__ = "web_sessions"

    #: An HMAC of the session's key, in hexadecimal digits. Only the browser has the key.
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(60))  #: the name that the operator has entered, for the audit
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class Move(Base):
    """A move of this database's rows to or from another database. Only `moves` and `table_copy` write this table."""

    __tablename__ = "moves"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)  #: the same in both databases
    direction: Mapped[str] = mapped_column(String(4))  #: a `MoveDirection`; with `to`, this database is sealed
    url: Mapped[str] = mapped_column(Text)  #: the URL of the other database, without a password
    who: Mapped[str] = mapped_column(String(100))  #: the operator, as in the audit
    started_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]


def utc_now() -> datetime:
    """Return the time of this machine's clock. Times that several agents compare use `db_now` instead."""
    return datetime.now(UTC)
