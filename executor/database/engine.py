"""Opens the database and its transactions: `transaction` for writes, `reading` for reads.

The database is SQLite (WAL, `synchronous=FULL`, `BEGIN IMMEDIATE`) or PostgreSQL; the same statements run on both.
The other modules of this package take a `Session` and never commit: their callers open the transaction. No transaction
is open during an HTTP request or a playbook run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from executor.errors import DatabaseError, DatabaseRefused, DatabaseUnavailable

#: A write on SQLite fails when another writer holds the database's write lock for longer than this time.
BUSY_TIMEOUT_MS = 15_000
#: File systems on which SQLite's locks do not work.
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "ceph", "glusterfs", "9p"})


def open_engine(url: str | URL) -> Engine:
    """Return an engine for `url`. The engine connects to the database at its first use.

    Raises DatabaseError when the URL names neither SQLite nor PostgreSQL, when the file of SQLite cannot be written, or
    when this file is on a network file system.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:  # the error's text may contain the password
        raise DatabaseError("the database's URL is invalid: use sqlite:///<file> or postgresql://…") from None
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed)
    if parsed.get_backend_name() != "postgresql":
        raise DatabaseError(f"the database must be SQLite or PostgreSQL, not {parsed.get_backend_name()}")
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
        _prepare_sqlite_file(Path(url.database))
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, pool_size=20, max_overflow=20)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare_sqlite_file(file: Path) -> None:
    """Create the file if it does not exist. Raises DatabaseError with the reason if SQLite cannot use the file.

    The error of SQLite is always `unable to open database file`, without a reason.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise DatabaseError(
            f"cannot write the database {file}: {error.strerror}. The folder must belong to uid {os.getuid()}; "
            "set SMITH_DATA_DIR or SMITH_DATABASE_URL to use another one"
        ) from error
    if not os.access(file, os.R_OK | os.W_OK):
        raise DatabaseError(f"the database {file} is not readable and writable for uid {os.getuid()}")
    if (kind := file_system_of(file)) in NETWORK_FILE_SYSTEMS:
        raise DatabaseError(
            f"the database {file} is on {kind}: SQLite's locks do not work there. Use a local disk, or PostgreSQL"
        )


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite database; None for PostgreSQL and for an SQLite database in memory."""
    parsed = make_url(url)
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:")
    return Path(str(parsed.database)) if is_file else None


def file_system_of(path: Path) -> str:
    """Return the type of the file system that contains `path`; '' when the kernel does not report the type."""
    longest, kind = "", ""  # the longest mount point that contains the path, and the type of its file system
    real = str(path.resolve())
    with contextlib.suppress(OSError), Path("/proc/self/mounts").open(encoding="utf-8") as mounts:
        for line in mounts:
            _device, raw_point, fs_type, *_rest = line.split(" ")
            point = raw_point.replace("\\040", " ")
            is_above = real == point or real.startswith(point.rstrip("/") + "/")
            if is_above and len(point) >= len(longest):
                longest, kind = point, fs_type
    return kind


def _set_pragmas(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # so that the driver sends no BEGIN: `_begin` sends it
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.close()


def _begin(connection: Any) -> None:
    # BEGIN IMMEDIATE waits for the write lock. In a transaction that started with a plain BEGIN, a write that follows a
    # read may fail at once with "database is locked". The names that start with `smith_` are execution options that
    # callers set on an engine: `smith_busy_ms` replaces BUSY_TIMEOUT_MS, `smith_migrating` is set by `schema`, and
    # `smith_read_only` is set by `reading`.
    options = connection.get_execution_options()
    connection.exec_driver_sql(f"PRAGMA busy_timeout={options.get('smith_busy_ms', BUSY_TIMEOUT_MS):d}")
    if options.get("smith_migrating", False):
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
    connection.exec_driver_sql("BEGIN" if options.get("smith_read_only", False) else "BEGIN IMMEDIATE")


@contextlib.contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """Open a transaction for writes. It is committed at the end of the block, and rolled back when the block raises.

    For an error of the database, it raises DatabaseUnavailable if a retry may succeed, and DatabaseRefused otherwise.
    """
    with _translating_errors(engine), Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Open a transaction for reads, which never waits for a writer. Raises the same errors as `transaction`."""
    options = engine.execution_options(smith_read_only=True)
    with _translating_errors(engine), Session(options, expire_on_commit=False) as session:
        yield session


def write_with_retry(engine: Engine, write: Callable[[Session], None], *, give_up_after_s: float = 300.0) -> None:
    """Run `write` in a transaction, and retry while the database is unavailable (full disk, lock, failover).

    Callers use this function for results that exist nowhere else. Raises DatabaseUnavailable when the database is still
    unavailable after `give_up_after_s`.
    """
    backoff_s, give_up_at = 0.5, time.monotonic() + give_up_after_s
    while True:
        try:
            with transaction(engine) as session:
                write(session)
            return
        except DatabaseUnavailable:
            if time.monotonic() >= give_up_at:
                raise
            time.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, 10.0)


@contextlib.contextmanager
def _translating_errors(engine: Engine) -> Iterator[None]:
    """Translate SQLAlchemy's errors into DatabaseUnavailable and DatabaseRefused."""
    try:
        yield
    except SQLAlchemyError as error:
        error_class = DatabaseUnavailable if _is_temporary(error) else DatabaseRefused
        raise error_class(error_text(engine, error)) from error


def _is_temporary(error: SQLAlchemyError) -> bool:
    """Return whether the statement that raised this error may succeed later."""
    # A PostgreSQL standby server refuses writes with InternalError. The connection pool raises PoolTimeoutError when
    # none of its connections is free.
    if isinstance(error, OperationalError | InternalError | PoolTimeoutError):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


def error_text(engine: Engine, error: SQLAlchemyError) -> str:
    """Return one line with the database's URL and the driver's error, without the password and the bound parameters."""
    reason = str(error.orig) if isinstance(error, DBAPIError) else str(error)
    shown = engine.url.render_as_string(hide_password=True)
    return f"the database {shown} cannot be used: {(reason.strip() or type(error).__name__).splitlines()[0]}"
