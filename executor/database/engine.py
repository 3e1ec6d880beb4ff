"""Opens the database and its transactions: `transaction` for writes, `read_only_session` for reads.

The database is SQLite (WAL, `synchronous=FULL`, `BEGIN IMMEDIATE`) or PostgreSQL. The same statements run on both. The
functions of the other modules in this package take a `Session`, or a `Connection` if they only read, and never commit:
their callers open the transaction. No transaction is open during an HTTP request or a playbook run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from executor.database import file_ownership
from executor.errors import DatabaseError, DatabaseLocked, DatabaseUnavailable, StatementRefused

if TYPE_CHECKING:  # At run time, only functions that need the ORM import it, so that commands that only read are fast.
    from sqlalchemy.orm import Session

#: How long a transaction on SQLite waits for the write lock of the database before it fails.
BUSY_TIMEOUT_MS = 15_000
#: The number of connections to SQLite that the pool keeps open, and the number that it may open in addition.
POOL_SIZE, MAX_POOL_OVERFLOW = 20, 20
#: The same numbers for PostgreSQL. There, each connection is a process of the server, and all agent processes share the
#: server. Outside of the pool, an agent process has one connection that waits for notifications of new jobs. So it has
#: at most 5 + 6 + 1 = 12 connections, and at most 5 + 1 = 6 of them stay open while it is idle.
POSTGRESQL_POOL_SIZE, MAX_POSTGRESQL_POOL_OVERFLOW = 5, 6
#: The backoff of `write_with_retry` starts with the first value, and doubles up to the second value.
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.5, 10.0
#: PostgreSQL's error code for a statement that waited for a lock longer than `lock_timeout`, which
#: `executor.database.postgresql` sets.
LOCK_NOT_AVAILABLE = "55P03"
#: Parts of SQLite's error texts about a damaged file, and the hint that is appended to such a text.
DAMAGE_WORDS = ("malformed", "file is not a database", "disk I/O error")
RESTORE_HINT = "; restore a backup: smith db restore FILE"
#: The error text for a URL that cannot be parsed.
INVALID_URL_TEXT = "the database's URL is invalid: use sqlite:///<file> or postgresql://…"
#: The types of network file systems. SQLite's locks do not work on them.
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "ceph", "glusterfs", "9p"})


def open_engine(url: str | URL) -> Engine:
    """Return an engine for `url`. The engine connects to the database when a caller first uses the engine.

    Raises DatabaseError when the URL names a database other than SQLite and PostgreSQL, when the SQLite file cannot be
    written, or when the SQLite file is on a network file system.
    """
    try:
        parsed_url = make_url(url)
    except ArgumentError:  # the text of this error may contain the password, so `from None` hides the error
        raise DatabaseError(INVALID_URL_TEXT) from None
    if parsed_url.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed_url)
    if parsed_url.get_backend_name() != "postgresql":
        raise DatabaseError(f"the database must be SQLite or PostgreSQL, not {parsed_url.get_backend_name()}")
    return _postgresql_engine(parsed_url.set(drivername="postgresql+psycopg"))


def _postgresql_engine(url: URL) -> Engine:
    try:
        from executor.database.postgresql import open_postgresql_engine  # noqa: PLC0415 (its driver is optional)

        return open_postgresql_engine(url, pool_size=POSTGRESQL_POOL_SIZE, max_overflow=MAX_POSTGRESQL_POOL_OVERFLOW)
    except ModuleNotFoundError:
        raise DatabaseError("PostgreSQL needs the driver psycopg: install agent-smith[postgres]") from None


def _sqlite_engine(url: URL) -> Engine:
    if url.database and url.database != ":memory:":
        _prepare_sqlite_file(Path(url.database))
    engine = create_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=MAX_POOL_OVERFLOW,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000},
    )
    event.listen(engine, "connect", _set_up_sqlite_connection)
    event.listen(engine, "begin", _begin_transaction)
    return engine


def _prepare_sqlite_file(file: Path) -> None:
    """Create the file if it does not exist. Raises DatabaseError with the reason if SQLite cannot use the file.

    SQLite's own error has no reason: it is always `unable to open database file`.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not file.exists():
            # If root creates the file, the file gets the owner of its folder.
            os.close(file_ownership.open_or_create_file(file, os.O_WRONLY))
    except OSError as error:
        raise DatabaseError(f"cannot write the database {file}: {_reason_and_remedy(error, file.parent)}") from error
    if reason := file_ownership.why_database_unusable(file):
        raise DatabaseError(f"cannot use the database: {reason}")
    file_system = file_system_of(file)
    if file_system in NETWORK_FILE_SYSTEMS:
        advice = "SQLite's locks do not work there. Use a local disk, or PostgreSQL"
        raise DatabaseError(f"the database {file} is on {file_system}: {advice}")


def _reason_and_remedy(error: OSError, folder: Path) -> str:
    """Return why the database's file cannot be created in the folder, with the remedy for this error."""
    other_folder_remedy = "set SMITH_DATA_DIR or SMITH_DATABASE_URL to use another folder"
    if error.errno in (errno.EACCES, errno.EPERM):
        uid = os.getuid()
        command = shlex.join(["chown", f"{uid}:{os.getgid()}", str(folder)])
        return f"{error.strerror}. The folder must belong to uid {uid} (as root: {command}), or {other_folder_remedy}"
    if error.errno == errno.EROFS:
        return f"{error.strerror}. Mount this file system writable, or {other_folder_remedy}"
    return f"{error.strerror}; {other_folder_remedy}"


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite database. Return None for PostgreSQL and for an SQLite database in memory."""
    parsed_url = make_url(url)
    is_file = parsed_url.get_backend_name() == "sqlite" and parsed_url.database not in (None, "", ":memory:")
    return Path(str(parsed_url.database)) if is_file else None


def file_system_of(path: Path) -> str:
    """Return the type of the file system that contains `path`, or '' if the kernel does not report the type."""
    deepest_mount_point, file_system = "", ""  # the deepest mount point that contains the path, and its file system
    real_path = str(path.resolve())
    with contextlib.suppress(OSError), Path("/proc/thread-self/mounts").open(encoding="utf-8") as mounts:
        for line in mounts:
            _device, escaped_mount_point, mounted_file_system, *_options = line.split(" ")
            mount_point = escaped_mount_point.replace("\\040", " ")  # the kernel writes a space as \040
            contains_path = real_path == mount_point or real_path.startswith(mount_point.rstrip("/") + "/")
            if contains_path and len(mount_point) >= len(deepest_mount_point):
                deepest_mount_point, file_system = mount_point, mounted_file_system
    return file_system


def _set_up_sqlite_connection(connection: Any, _record: Any) -> None:
    """Set the isolation level and the pragmas of a new connection."""
    connection.isolation_level = None  # the driver then sends no BEGIN, so that only `_begin_transaction` sends one
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_transaction(connection: Any) -> None:
    """Start a transaction on SQLite. These execution options of the engine change how the transaction starts:

    - `smith_busy_timeout_ms` replaces BUSY_TIMEOUT_MS.
    - `smith_migrating`, which is set for a migration of the schema, turns the checks of foreign keys off.
    - `smith_read_only`, which for example `read_only_session` sets, starts the transaction without the write lock.
    """
    options = connection.get_execution_options()
    busy_timeout_ms = options.get("smith_busy_timeout_ms", BUSY_TIMEOUT_MS)
    if connection.info.get("smith_busy_timeout_ms", BUSY_TIMEOUT_MS) != busy_timeout_ms:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={busy_timeout_ms:d}")
        connection.info["smith_busy_timeout_ms"] = busy_timeout_ms
    if options.get("smith_migrating", False):
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
    # BEGIN IMMEDIATE waits for the write lock. After a plain BEGIN, a write that follows a read may fail at once with
    # "database is locked".
    connection.exec_driver_sql("BEGIN" if options.get("smith_read_only", False) else "BEGIN IMMEDIATE")


@contextlib.contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """Open a transaction for writes. It is committed at the end of the block, or rolled back if the block raises.

    If the database fails, DatabaseUnavailable is raised when a retry may succeed, and StatementRefused otherwise.
    """
    from sqlalchemy.orm import Session  # noqa: PLC0415 (see the imports at the beginning)

    with raise_as_database_error(engine), Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


def can_begin_write(engine: Engine, *, within_s: float) -> bool:
    """Return False if another connection holds SQLite's write lock for longer than `within_s`; True otherwise.

    PostgreSQL has no such lock, so the result is True. Raises DatabaseError if the database cannot be used.
    """
    engine_with_timeout = engine.execution_options(smith_busy_timeout_ms=int(within_s * 1000))
    try:
        with (
            raise_as_database_error(engine),
            engine_with_timeout.connect() as connection,
            connection.begin() as open_transaction,
        ):
            open_transaction.rollback()
    except DatabaseUnavailable as error:
        if "database is locked" in str(error):
            return False
        raise
    return True


@contextlib.contextmanager
def read_only_session(engine: Engine) -> Iterator[Session]:
    """Open a transaction for reads. It never waits for a writer. Raises the same errors as `transaction`."""
    from sqlalchemy.orm import Session  # noqa: PLC0415 (see the imports at the beginning)

    read_only_engine = engine.execution_options(smith_read_only=True)
    with raise_as_database_error(engine), Session(read_only_engine, expire_on_commit=False) as session:
        yield session


@contextlib.contextmanager
def read_only_connection(engine: Engine) -> Iterator[Connection]:
    """Open a transaction for reads, like `read_only_session`, but yield a connection, which does not need the ORM."""
    with raise_as_database_error(engine), engine.execution_options(smith_read_only=True).connect() as connection:
        yield connection


def write_with_retry(
    engine: Engine,
    write: Callable[[Session], None],
    *,
    give_up_after_s: float = 300.0,
    on_wait: Callable[[DatabaseUnavailable], None] = lambda _error: None,
) -> None:
    """Run `write` in a transaction, and retry while the database is unavailable (full disk, lock, failover).

    Callers use this function for results that would otherwise be lost. `on_wait` is called once, with the first error,
    before the first retry. Raises DatabaseUnavailable if the database is still unavailable after `give_up_after_s`.
    """
    backoff_s, give_up_at, has_waited = MIN_BACKOFF_S, time.monotonic() + give_up_after_s, False
    while True:
        try:
            with transaction(engine) as session:
                write(session)
            return
        except DatabaseUnavailable as error:
            if time.monotonic() >= give_up_at:
                raise
            if not has_waited:
                has_waited = True
                on_wait(error)
            time.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)


@contextlib.contextmanager
def raise_as_database_error(engine: Engine) -> Iterator[None]:
    """Translate SQLAlchemy's errors into DatabaseUnavailable or StatementRefused.

    If the wait for a lock was too long, the error is DatabaseUnavailable on SQLite, and on PostgreSQL its subclass
    DatabaseLocked.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise _error_class(error)(error_text(engine, error)) from error


def _error_class(error: SQLAlchemyError) -> type[DatabaseError]:
    if getattr(getattr(error, "orig", None), "sqlstate", None) == LOCK_NOT_AVAILABLE:
        return DatabaseLocked
    return DatabaseUnavailable if _may_succeed_later(error) else StatementRefused


def _may_succeed_later(error: SQLAlchemyError) -> bool:
    """Return whether the statement that raised this error may succeed later."""
    # A PostgreSQL standby server refuses a write with InternalError. The connection pool raises PoolTimeoutError when
    # all of its connections are in use.
    if isinstance(error, OperationalError | InternalError | PoolTimeoutError):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


def error_text(engine: Engine, error: SQLAlchemyError) -> str:
    """Return one line with the database's URL and the driver's error.

    The line contains neither the password nor the parameters of the statement.
    """
    url = engine.url.render_as_string(hide_password=True)
    error_lines = str(error.orig if isinstance(error, DBAPIError) else error).strip().splitlines()
    reason = error_lines[0] if error_lines else type(error).__name__
    is_damaged = engine.dialect.name == "sqlite" and any(words in reason for words in DAMAGE_WORDS)
    return f"the database {url} cannot be used: {reason}{RESTORE_HINT if is_damaged else ''}"
