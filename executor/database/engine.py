"""The database: one engine, the tables, and the only two ways to open a transaction.

SQLite by default (WAL, `synchronous=FULL`, `BEGIN IMMEDIATE`), PostgreSQL by URL; the same statements run on both.
Functions elsewhere take a `Session` and never commit: the caller writes `with transaction(engine) as session`.
No transaction is open during HTTP or a playbook.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    Boolean,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    create_engine,
    event,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.sql.functions import FunctionElement

from executor.errors import DatabaseError
from executor.model import GuestKind, JobStatus, MappingState, ReportState

#: How long a writer waits for another one on SQLite before it gives up.
BUSY_TIMEOUT_MS = 15_000
#: PostgreSQL's advisory lock under which the schema changes: several nodes may start at once after an update.
MIGRATION_LOCK = 0x534D4947
MIGRATIONS = Path(__file__).parent / "migrations"
#: File systems on which SQLite's locks are known to lie.
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "ceph", "glusterfs", "9p"})


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time; SQLite drops the zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times: they are a defect of the caller."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime reached the database")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give every time its zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class db_now(FunctionElement[datetime]):
    """The database's own clock, `offset_s` seconds from now: leases never trust a node's clock."""

    type = UtcDateTime()
    inherit_cache = True  # the offset is a parameter, so that a statement is turned into SQL once

    def __init__(self, offset_s: float = 0.0) -> None:
        super().__init__(literal(float(offset_s), Float()))


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: Any, **kw: Any) -> str:
    # The same text form in which SQLAlchemy stores a DateTime, so that texts compare as times do.
    offset = compiler.process(element.clauses, **kw)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('%+.3f seconds', {offset}))"


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: Any, **kw: Any) -> str:
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kw)}))"


class Base(DeclarativeBase):
    """Every table; a change here needs a migration (tests compare the two)."""

    type_annotation_map: ClassVar = {datetime: UtcDateTime, dict[str, Any]: JSON(none_as_null=True)}


class Job(Base):
    """One of FulcrumCore's jobs. Written by `job_queue` only."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(
            "ix_jobs_one_processing_per_service",
            "service_id",
            unique=True,
            sqlite_where=text("status = 'processing'"),
            postgresql_where=text("status = 'processing'"),
        ),
        Index(
            "ix_jobs_to_claim",
            text("priority DESC"),
            "core_created_at",
            "id",
            sqlite_where=text("status = 'pending'"),
            postgresql_where=text("status = 'pending'"),
        ),
        Index(
            "ix_jobs_to_report",
            "finished_at",
            sqlite_where=text("report_state = 'due'"),
            postgresql_where=text("report_state = 'due'"),
        ),
        Index(
            "ix_jobs_ended",
            "finished_at",
            "status",
            sqlite_where=text("status IN ('completed', 'failed')"),
            postgresql_where=text("status IN ('completed', 'failed')"),
        ),
        Index("ix_jobs_service", "service_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    fulcrum_id: Mapped[str] = mapped_column(String(36), unique=True)
    service_id: Mapped[str | None] = mapped_column(String(36))
    group_id: Mapped[str | None] = mapped_column(String(36))
    tenant_id: Mapped[str | None] = mapped_column(String(36))  #: FulcrumCore's consumer
    action: Mapped[str] = mapped_column(String(100))
    params: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    service: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    defect: Mapped[str | None] = mapped_column(Text)  #: why it cannot be carried out at all
    priority: Mapped[int] = mapped_column(Integer, default=1)
    status: Mapped[str] = mapped_column(String(20), default=JobStatus.PENDING)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    crashes: Mapped[int] = mapped_column(Integer, default=0)  #: leases that ran out under it
    cancel_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    available_at: Mapped[datetime | None]
    core_created_at: Mapped[datetime]
    deadline_at: Mapped[datetime]  #: in FulcrumCore's clock
    received_at: Mapped[datetime]
    owner: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None]
    epoch: Mapped[int] = mapped_column(Integer, default=0)
    claim_sent_at: Mapped[datetime | None]
    claimed_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    reported_at: Mapped[datetime | None]
    report_state: Mapped[str] = mapped_column(String(20), default=ReportState.NONE)
    report_attempts: Mapped[int] = mapped_column(Integer, default=0)
    report_after: Mapped[datetime | None]
    report_note: Mapped[str | None] = mapped_column(Text)  #: what FulcrumCore said to it
    error_code: Mapped[str | None] = mapped_column(String(40))
    error_message: Mapped[str | None] = mapped_column(Text)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    run_ident: Mapped[str | None] = mapped_column(String(64))


class Run(Base):
    """One playbook run of a job."""

    __tablename__ = "runs"
    __table_args__ = (Index("ix_runs_job", "job_id"), Index("ix_runs_started", "started_at"))

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    ident: Mapped[str] = mapped_column(String(64), unique=True)
    attempt: Mapped[int]
    playbook: Mapped[str] = mapped_column(String(100))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    rc: Mapped[int | None]
    status: Mapped[str | None] = mapped_column(String(20))
    reason: Mapped[str | None] = mapped_column(Text)
    folder: Mapped[str | None] = mapped_column(Text)
    upids: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))


class Mapping(Base):
    """Which VM serves which service. Written by `mappings` only; ended ones stay as history."""

    __tablename__ = "mappings"
    __table_args__ = (
        Index(
            "ix_mappings_one_per_service",
            "service_id",
            unique=True,
            sqlite_where=text("state != 'deleted'"),
            postgresql_where=text("state != 'deleted'"),
        ),
        Index(
            "ix_mappings_one_per_vmid",
            "cluster",
            "vmid",
            unique=True,
            sqlite_where=text("state != 'deleted'"),
            postgresql_where=text("state != 'deleted'"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    service_id: Mapped[str] = mapped_column(String(36))
    cluster: Mapped[str] = mapped_column(String(100))
    vmid: Mapped[int]
    node: Mapped[str | None] = mapped_column(String(100))
    kind: Mapped[str] = mapped_column(String(10), default=GuestKind.QEMU, server_default=GuestKind.QEMU)
    name: Mapped[str] = mapped_column(String(100))
    marker: Mapped[str] = mapped_column(String(100))
    mac_address: Mapped[str | None] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(20), default=MappingState.RESERVED)
    note: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
    delete_at: Mapped[datetime | None]  #: of a doomed VM: when it may be destroyed


class CriticalJob(Base):
    """A job that the agent owes the outside world at an interval."""

    __tablename__ = "critical_jobs"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    interval_s: Mapped[float]
    due_at: Mapped[datetime | None]
    last_started_at: Mapped[datetime | None]
    last_finished_at: Mapped[datetime | None]
    last_ok_at: Mapped[datetime | None]
    last_error: Mapped[str | None] = mapped_column(Text)
    failures: Mapped[int] = mapped_column(Integer, default=0)  #: in a row
    runs: Mapped[int] = mapped_column(Integer, default=0)


class Node(Base):
    """One start of one agent process."""

    __tablename__ = "nodes"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    version: Mapped[str] = mapped_column(String(40))
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    stopped_at: Mapped[datetime | None]
    stop_reason: Mapped[str | None] = mapped_column(String(40))
    concurrency_wanted: Mapped[int]
    concurrency: Mapped[int]
    draining: Mapped[bool] = mapped_column(Boolean, default=False)


class AuditEntry(Base):
    """One thing that somebody changed by hand, or the agent by itself. Written by `audit` only, and never changed.

    Triggers refuse every UPDATE and DELETE (migration 0002); nothing is pruned.
    """

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_subject", "subject_kind", "subject_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    who: Mapped[str] = mapped_column(String(100))  #: the operating system's user, or `agent`
    verb: Mapped[str] = mapped_column(String(40))
    subject_kind: Mapped[str] = mapped_column(String(20))  #: job, mapping
    subject_id: Mapped[str] = mapped_column(String(100))
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    reason: Mapped[str | None] = mapped_column(Text)


def utc_now() -> datetime:
    """Return this machine's clock, aware, for columns that people read; leases use `db_now`."""
    return datetime.now(UTC)


def open_engine(url: str | URL) -> Engine:
    """Return an engine for `url`; nothing is connected yet.

    Raises DatabaseError when it is no address of SQLite or PostgreSQL, and when SQLite's folder cannot be made or
    written, or lies on a network file system.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:  # its text may quote the password
        raise DatabaseError("the database's address cannot be read: sqlite:///<file> or postgresql://…") from None
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed)
    if parsed.get_backend_name() != "postgresql":
        raise DatabaseError(f"the database is to be SQLite or PostgreSQL, not {parsed.get_backend_name()}")
    return _postgresql_engine(parsed.set(drivername="postgresql+psycopg"))


def _postgresql_engine(url: URL) -> Engine:
    try:
        return create_engine(
            url,
            pool_pre_ping=True,
            pool_size=20,
            max_overflow=20,
            connect_args={"connect_timeout": 5, "options": "-c statement_timeout=15000 -c timezone=UTC"},
        )
    except ModuleNotFoundError:
        raise DatabaseError("PostgreSQL needs the driver psycopg: install agent-smith[postgres]") from None


def _sqlite_engine(url: URL) -> Engine:
    if url.database and url.database != ":memory:":
        _check_sqlite_file(Path(url.database))
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, pool_size=20, max_overflow=20)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _check_sqlite_file(file: Path) -> None:
    """Say what is wrong with the place in one line, where SQLite would say `unable to open database file`."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise DatabaseError(
            f"cannot write the database {file}: {error.strerror}. The folder must belong to uid {os.getuid()}; "
            "SMITH_DATA_DIR or SMITH_DATABASE_URL name another place"
        ) from error
    if not os.access(file, os.R_OK | os.W_OK):
        raise DatabaseError(f"the database {file} is not readable and writable for uid {os.getuid()}")
    if (kind := file_system_of(file)) in NETWORK_FILE_SYSTEMS:
        raise DatabaseError(
            f"the database {file} lies on {kind}: SQLite's locks do not hold there. Use a local disk, or PostgreSQL"
        )


def file_system_of(path: Path) -> str:
    """Return the kind of file system that holds `path`, '' when the kernel does not say."""
    best, kind = "", ""
    real = str(path.resolve())
    with contextlib.suppress(OSError), Path("/proc/self/mounts").open(encoding="utf-8") as mounts:
        for line in mounts:
            _device, raw_point, fs_type, *_rest = line.split(" ")
            point = raw_point.replace("\\040", " ")
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, fs_type
    return kind


def _set_pragmas(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves: pysqlite's own comes only before a write
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    # A reader that turns into a writer half-way is what makes SQLite answer "database is locked" at once.
    options = connection.get_execution_options()
    connection.exec_driver_sql(f"PRAGMA busy_timeout={options.get('smith_busy_ms', BUSY_TIMEOUT_MS):d}")
    if options.get("smith_migrating", False):
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
    connection.exec_driver_sql("BEGIN" if options.get("smith_read_only", False) else "BEGIN IMMEDIATE")


@contextlib.contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """Open a writing transaction; commit at the end of the block, roll back when it raises."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


def insist(engine: Engine, write: Callable[[Session], None], *, give_up_after_s: float = 300.0) -> None:
    """Run `write` in a transaction, again and again while the database cannot take it (full disk, lock, failover).

    For ends of work whose only other copy is in memory. Raises the driver's error when the patience is over.
    """
    pause_s, give_up_at = 0.5, time.monotonic() + give_up_after_s
    while True:
        try:
            with transaction(engine) as session:
                write(session)
            return
        except SQLAlchemyError as error:
            if not _may_pass(error) or time.monotonic() >= give_up_at:
                raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 10.0)


def _may_pass(error: SQLAlchemyError) -> bool:
    """Tell a database that cannot write just now from a statement that it will never take."""
    # InternalError: PostgreSQL's word for a standby that still refuses writes. TimeoutError: no connection is free.
    if isinstance(error, OperationalError | InternalError | PoolTimeoutError):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Open a reading transaction, which waits for no writer."""
    with Session(engine.execution_options(smith_read_only=True), expire_on_commit=False) as session:
        yield session


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to `revision`. Raises DatabaseError for a schema newer than this program."""
    from alembic import command  # noqa: PLC0415 (a tenth of a second that `smith --help` need not pay)

    refuse_newer(engine)
    with _translated(engine), _migrating(engine) as connection:
        command.upgrade(_alembic_config(connection), revision)


def downgrade(engine: Engine, revision: str = "-1") -> None:
    """Take the schema one step back, or to `revision`."""
    from alembic import command  # noqa: PLC0415 (see upgrade)

    refuse_newer(engine)
    with _translated(engine), _migrating(engine) as connection:
        command.downgrade(_alembic_config(connection), revision)


@contextlib.contextmanager
def _migrating(engine: Engine) -> Iterator[Connection]:
    """Open the one transaction that may change the schema; a second one waits and then finds it changed."""
    with engine.execution_options(smith_migrating=True).connect() as connection:
        try:
            with connection.begin():
                if engine.dialect.name == "postgresql":
                    connection.execute(text("SET LOCAL statement_timeout = 0"))  # a large table takes its time
                    connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
                yield connection
        finally:
            if engine.dialect.name == "sqlite":
                # Its foreign keys are off: Alembic rebuilds a table by dropping the old one, and that would delete
                # every row that refers to it. Such a connection must not serve anything else.
                connection.invalidate()


def current_revision(engine: Engine) -> str | None:
    """Return the schema's revision, None for an empty database."""
    from alembic.migration import MigrationContext  # noqa: PLC0415 (see upgrade)

    with _translated(engine), engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str:
    """Return the newest revision that this program knows."""
    head: str | None = _script_directory().get_current_head()
    assert head is not None  # noqa: S101 (the package ships at least one migration)
    return head


def refuse_newer(engine: Engine) -> None:
    """Raise DatabaseError when the schema was made by a newer Agent Smith."""
    current = current_revision(engine)
    known = {script.revision for script in _script_directory().walk_revisions()}
    if current is not None and current not in known:
        raise DatabaseError(
            f"the database has schema {current}, which this version (newest: {head_revision()}) does not know: "
            "run the newer Agent Smith, or take the schema back with it first (smith db downgrade)"
        )


def check(engine: Engine) -> list[str]:
    """Return what is wrong with the database, a line each; empty means sound and up to date."""
    refuse_newer(engine)
    problems = []
    current, head = current_revision(engine), head_revision()
    if current != head:
        problems.append(f"schema is {current or 'empty'}, this version needs {head}: run `smith db upgrade`")
    if engine.dialect.name == "sqlite":
        with _translated(engine), engine.connect() as connection:
            problems += [row[0] for row in connection.execute(text("PRAGMA integrity_check")) if row[0] != "ok"]
            problems += [
                f"broken reference: {tuple(row)}" for row in connection.execute(text("PRAGMA foreign_key_check"))
            ]
    return problems


def _script_directory() -> Any:
    from alembic.script import ScriptDirectory  # noqa: PLC0415 (see upgrade)

    return ScriptDirectory(str(MIGRATIONS))


def _alembic_config(connection: Any) -> Any:
    from alembic.config import Config  # noqa: PLC0415 (see upgrade)

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


@contextlib.contextmanager
def _translated(engine: Engine) -> Iterator[None]:
    """Turn the driver's errors into one line that names the database, without its password."""
    try:
        yield
    except SQLAlchemyError as error:
        reason = str(error.orig) if isinstance(error, DBAPIError) else str(error)
        shown = engine.url.render_as_string(hide_password=True)
        raise DatabaseError(f"the database {shown} cannot be used: {reason.strip()}") from error
