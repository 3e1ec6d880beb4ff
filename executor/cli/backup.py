"""Contains `smith db backup`, which copies the SQLite database, and `smith db restore`.

`smith db backup` works even while an agent runs. `smith db restore` replaces the database by such a copy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from executor.cli.arguments import AsJson, confirm
from executor.cli.context import PRIVATE_UMASK, open_settings
from executor.cli.database import holding_database_lock
from executor.cli.help_text import examples
from executor.cli.output import show_outcome
from executor.cli.store import open_database
from executor.database import move_queries, revisions, schema
from executor.database.engine import open_engine, sqlite_file
from executor.database.file_ownership import change_owner_if_run_as_root
from executor.errors import DatabaseError, DatabaseUnavailable, StatementRefused
from executor.settings.settings import Settings

#: The suffixes of the files that SQLite keeps beside a database in WAL mode while the database is open. If a process
#: ends without closing the database, the files remain.
EXTRA_FILE_SUFFIXES = ("-wal", "-shm")
#: The maximum number of problems in the error text for a damaged database.
MAX_SHOWN_PROBLEMS = 3


@examples(
    "smith db backup /var/backups/smith-$(date +%F).db    even while the agent runs",
)
def back_up_database(
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="The new file; must not exist.")],
    as_json: AsJson = False,
) -> None:
    """Copy the SQLite database into one file.

    The copy is consistent. A running agent is not delayed.
    """
    settings = open_settings()
    _require_sqlite_file(settings, postgresql_command="pg_dump --format=custom --file=smith.dump 'postgresql://…'")
    if file.exists():
        raise DatabaseError(f"{file} exists: a backup does not overwrite files")
    os.umask(PRIVATE_UMASK)
    partial_file = file.with_name(f"{file.name}.partial")
    with _convert_errors_to_database_error(file), open_database(settings) as engine:
        partial_file.unlink(missing_ok=True)
        connection = engine.raw_connection()
        try:
            source = connection.driver_connection
            assert isinstance(source, sqlite3.Connection)  # noqa: S101 (_require_sqlite_file refuses PostgreSQL)
            size_bytes = _copy_and_check_database(source, partial_file)
        finally:
            connection.close()
        os.replace(partial_file, file)
        _flush_folder(file.parent)
    show_outcome(f"{file}: {size_bytes} bytes, checked", as_json=as_json, file=str(file), bytes=size_bytes)


@examples(
    "smith db restore /var/backups/smith-2026-11-23.db --yes    the agent must be stopped",
)
def restore_database(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A file that `smith db backup` wrote.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Replace the database by a backup.

    The agent must be stopped. The old file is kept under another name in the same folder.
    """
    settings = open_settings()
    target = _require_sqlite_file(
        settings, postgresql_command="pg_restore --clean --if-exists --dbname='postgresql://…' smith.dump"
    )
    os.umask(PRIVATE_UMASK)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new_file = target.with_name(f"{target.name}.restoring")
    # Each agent holds this lock while it runs. If an agent holds the lock, holding_database_lock raises DatabaseError.
    with _convert_errors_to_database_error(target), holding_database_lock(Path(f"{target}.lock")):
        try:
            # A sealed database refuses all changes: `smith db migrate` has moved its rows to another database.
            _refuse_sealed_database(target)
            revision = _copy_backup(file, new_file)
            confirm(
                f"Replace {target} by {file} (schema revision {revision})? All changes since the backup are lost.",
                yes=yes,
            )
            old_file = _replace_database(target, new_file)
        finally:
            # After a success, `new_file` does not exist any more: it was renamed to `target`.
            _delete_database(new_file)
    lines = [f"{target} is now a copy of {file}"]
    if old_file is not None:
        lines[0] += f"; the old file is kept as {old_file}"
    needed_revision = revisions.head_revision()
    if revision != needed_revision:
        lines.append(
            f"this copy's schema has revision {revision}: `smith run` and `smith db upgrade` upgrade the schema to "
            f"{needed_revision}"
        )
    lines.append("all changes since the backup are lost")
    lines.append("`smith drift` shows where the restored mappings differ from Proxmox and FulcrumCore")
    old_file_name = str(old_file) if old_file else None
    show_outcome("\n".join(lines), as_json=as_json, file=str(target), kept=old_file_name, schema=revision)


def _refuse_sealed_database(file: Path) -> None:
    """Raise DatabaseError if the database in the file is sealed.

    A restore would remove the seal. If the file is not a usable database, the query fails (DatabaseUnavailable or
    StatementRefused), and this function returns.
    """
    if not file.exists():
        return
    engine = open_engine(f"sqlite:///{file}")
    try:
        reason_if_sealed = move_queries.why_sealed(engine)
    except (DatabaseUnavailable, StatementRefused):
        return
    finally:
        engine.dispose()
    if reason_if_sealed:
        raise DatabaseError(reason_if_sealed)


def _require_sqlite_file(settings: Settings, *, postgresql_command: str) -> Path:
    """Return the path of the SQLite database.

    Raises DatabaseError if the database is PostgreSQL. The error text recommends `postgresql_command`.
    """
    file = sqlite_file(settings.smith_database_url)
    if file is None:
        raise DatabaseError(f"the database is not a SQLite file: use PostgreSQL's own tool, {postgresql_command}")
    return file


# --- the copy ---------------------------------------------------------------------------------------------------


def _copy_and_check_database(source: sqlite3.Connection, target: Path) -> int:
    """Copy the database into one file, check the copy, flush the copy to the disk, and return the copy's size in bytes.

    All pages are copied in one step (`pages=-1`), which blocks no writer in WAL mode. With several steps, each write by
    another process would restart the copy.
    """
    target.touch(mode=0o600, exist_ok=False)
    with contextlib.closing(sqlite3.connect(target)) as copy_connection:
        source.backup(copy_connection, pages=-1)
        # In this mode the copy has no -wal file, so the copy can be opened on a read-only disk.
        copy_connection.execute("PRAGMA journal_mode=DELETE")
        _refuse_damaged_database(copy_connection, target)
    with target.open("rb") as opened_file:
        os.fsync(opened_file.fileno())
    return target.stat().st_size


def _refuse_damaged_database(connection: sqlite3.Connection, file: Path) -> None:
    """Raise DatabaseError if SQLite finds a damaged page or a broken foreign key in the file."""
    problems = [message for (message,) in connection.execute("PRAGMA integrity_check") if message != "ok"]
    problems += [f"broken reference: {row}" for row in connection.execute("PRAGMA foreign_key_check")]
    if problems:
        raise DatabaseError(f"{file} is damaged: {'; '.join(problems[:MAX_SHOWN_PROBLEMS])}")


def _copy_backup(file: Path, new_file: Path) -> str:
    """Copy the backup `file` to `new_file`, and return the revision of its schema.

    Raises DatabaseError if `file` is not a database of Agent Smith, or has a schema that this version does not know.
    """
    _delete_database(new_file)  # An interrupted restore may have left this file.
    with _convert_errors_to_database_error(file), contextlib.closing(_open_read_only(file)) as source:
        _copy_and_check_database(source, new_file)
    engine = open_engine(f"sqlite:///{new_file}")
    try:
        schema.refuse_newer_or_foreign_schema(engine)  # foreign: with the tables of another program
        revision = schema.current_revision(engine)
    finally:
        engine.dispose()
    if revision is None:  # The database has no tables.
        raise DatabaseError(f"{file} is not a database of Agent Smith")
    return revision


def _open_read_only(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(file.resolve()))}?mode=ro", uri=True)


# --- the replacement ----------------------------------------------------------------------------------------------


def _replace_database(target: Path, new_file: Path) -> Path | None:
    """Replace `target` by `new_file`. Return the path where the old file is kept, or None if there was no old file.

    SQLite would apply the -wal file of the old database to the new database. So these steps precede the replacement:
    1. The content of the -wal file is written into the old database (checkpoint).
    2. The old database is kept under another name. Because the checkpoint may have failed, copies of the -wal file and
       of the -shm file (the index of the -wal file) are kept with it.
    3. The -wal file and the -shm file are deleted.
    """
    old_file = None
    owner_stat = (target if target.exists() else target.parent).stat()
    if target.exists():
        old_file = target.with_name(f"{target.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        _write_wal_into_database(target)
        os.link(target, old_file)
        for suffix in EXTRA_FILE_SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{target}{suffix}", f"{old_file}{suffix}")
            change_owner_if_run_as_root(owner_stat, Path(f"{old_file}{suffix}"))
        _flush_folder(target.parent)
        for suffix in EXTRA_FILE_SUFFIXES:
            Path(f"{target}{suffix}").unlink(missing_ok=True)
    change_owner_if_run_as_root(owner_stat, new_file)
    os.replace(new_file, target)
    _flush_folder(target.parent)
    return old_file


def _write_wal_into_database(target: Path) -> None:
    """Write the content of the -wal file into the database. Errors are ignored, because the database may be damaged."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(target)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _delete_database(file: Path) -> None:
    """Delete the database file and the files that SQLite keeps beside it."""
    for suffix in ("", *EXTRA_FILE_SUFFIXES):
        Path(f"{file}{suffix}").unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Flush the folder's entries to the disk, so that renames survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _convert_errors_to_database_error(file: Path) -> Iterator[None]:
    """Convert an error of SQLite or of the file system in the `with` block to a DatabaseError with a one-line text."""
    try:
        yield
    except sqlite3.Error as error:
        raise DatabaseError(f"{file} cannot be used: {error}") from error
    except OSError as error:
        raise DatabaseError(f"{error.filename or file}: {error.strerror or error}") from error
