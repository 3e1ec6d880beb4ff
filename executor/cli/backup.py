"""`smith db backup` copies the SQLite database while an agent works; `smith db restore` replaces it by such a copy."""

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
from executor.cli.database import locked
from executor.cli.help_text import examples
from executor.cli.output import show_outcome
from executor.cli.store import open_database
from executor.database import schema
from executor.database.engine import open_engine, sqlite_file
from executor.errors import DatabaseError
from executor.settings.settings import Settings

#: Suffixes of the files that SQLite keeps beside a database in WAL mode while the database is open. They stay when a
#: process ends without closing the database.
SQLITE_SUFFIXES = ("-wal", "-shm")


@examples(
    "smith db backup /var/backups/smith-$(date +%F).db    while the agent works",
)
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="The new file; must not exist.")],
    as_json: AsJson = False,
) -> None:
    """Copy the SQLite database into one file.

    The copy is consistent. A running agent is not delayed.
    """
    settings = open_settings()
    _sqlite_file(settings, "pg_dump --format=custom --file=smith.dump 'postgresql://…'")
    if file.exists():
        raise DatabaseError(f"{file} exists: a backup does not overwrite files")
    os.umask(PRIVATE_UMASK)
    partial = file.with_name(f"{file.name}.partial")
    with _translating_errors(file), open_database(settings) as engine:
        partial.unlink(missing_ok=True)
        connection = engine.raw_connection()
        try:
            source = connection.driver_connection
            assert isinstance(source, sqlite3.Connection)  # noqa: S101 (_sqlite_file has checked it)
            size = _copy(source, partial)
        finally:
            connection.close()
        os.replace(partial, file)
        _sync(file.parent)
    show_outcome(f"{file}: {size} bytes, checked", as_json=as_json, file=str(file), bytes=size)


@examples(
    "smith db restore /var/backups/smith-2026-11-23.db --yes    with the agent stopped",
)
def restore(
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
    target = _sqlite_file(settings, "pg_restore --clean --if-exists --dbname='postgresql://…' smith.dump")
    os.umask(PRIVATE_UMASK)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new_file = target.with_name(f"{target.name}.restoring")
    with _translating_errors(target), locked(Path(f"{target}.lock")):
        try:
            revision = _checked_copy(file, new_file)
            confirm(f"Replace {target} by {file} (schema {revision})? Newer data is lost.", yes=yes)
            kept = _swap(target, new_file)
        finally:
            _remove(new_file)
    lines = [f"{target} is now a copy of {file}" + (f"; the old file is kept as {kept}" if kept else "")]
    if revision != (newest := schema.head_revision()):
        lines.append(f"its schema is {revision}: `smith run` and `smith db upgrade` upgrade it to {newest}")
    lines.append("it lacks all changes since the backup: `smith drift` shows the differences")
    show_outcome("\n".join(lines), as_json=as_json, file=str(target), kept=kept and str(kept), schema=revision)


def _sqlite_file(settings: Settings, postgresql_command: str) -> Path:
    """Return the database's file. Raises DatabaseError for PostgreSQL; the error names `postgresql_command` instead."""
    file = sqlite_file(settings.smith_database_url)
    if file is None:
        raise DatabaseError(f"the database is not a SQLite file: use PostgreSQL's own tool, {postgresql_command}")
    return file


# --- the copy ---------------------------------------------------------------------------------------------------


def _copy(source: sqlite3.Connection, target: Path) -> int:
    """Copy the database into one file, check the copy, flush it to the disk, and return its size in bytes.

    All pages are copied in one step (`pages=-1`). In WAL mode this blocks no writer. With several steps, a write by
    another process would restart the copy.
    """
    target.touch(mode=0o600, exist_ok=False)
    with contextlib.closing(sqlite3.connect(target)) as copy:
        source.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode=DELETE")  # Without a -wal file, a read-only disk is enough to open it.
        _refuse_damaged(copy, target)
    with target.open("rb") as handle:
        os.fsync(handle.fileno())
    return target.stat().st_size


def _refuse_damaged(connection: sqlite3.Connection, file: Path) -> None:
    """Raise DatabaseError if SQLite finds a damaged page or a broken foreign key in the file."""
    problems = [str(row[0]) for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    problems += [f"broken reference: {row}" for row in connection.execute("PRAGMA foreign_key_check")]
    if problems:
        raise DatabaseError(f"{file} is damaged: {'; '.join(problems[:3])}")


def _checked_copy(file: Path, new_file: Path) -> str:
    """Copy the backup `file` to `new_file`, and return the revision of its schema.

    Raises DatabaseError if `file` is not a database of Agent Smith, or has a newer schema than this version.
    """
    _remove(new_file)
    with _translating_errors(file), contextlib.closing(_open_read_only(file)) as source:
        _copy(source, new_file)
    engine = open_engine(f"sqlite:///{new_file}")
    try:
        schema.refuse_newer(engine)
        revision = schema.current_revision(engine)
    finally:
        engine.dispose()
    if revision is None:
        raise DatabaseError(f"{file} is not a database of Agent Smith")
    return revision


def _open_read_only(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(file.resolve()))}?mode=ro", uri=True)


# --- the swap ---------------------------------------------------------------------------------------------------


def _swap(target: Path, new_file: Path) -> Path | None:
    """Replace `target` by `new_file`. Return the name under which the old file is kept, or None if there was no file.

    SQLite would apply the -wal file of the old database to the new one. So the -wal file must be deleted before the
    replacement. Its content is first written into the old database (checkpoint). The checkpoint may fail, so a copy of
    the -wal file is kept beside the old database.
    """
    kept = None
    if target.exists():
        kept = target.with_name(f"{target.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        _checkpoint(target)
        os.link(target, kept)
        for suffix in SQLITE_SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{target}{suffix}", f"{kept}{suffix}")
        _sync(target.parent)
        for suffix in SQLITE_SUFFIXES:
            Path(f"{target}{suffix}").unlink(missing_ok=True)
    os.replace(new_file, target)
    _sync(target.parent)
    return kept


def _checkpoint(target: Path) -> None:
    """Write the content of the -wal file into the database. SQLite errors are ignored: the database may be damaged."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(target)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _remove(file: Path) -> None:
    """Delete the database file and the files that SQLite keeps beside it."""
    for suffix in ("", *SQLITE_SUFFIXES):
        Path(f"{file}{suffix}").unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Flush the folder's entries to the disk, so that renames survive a power loss."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _translating_errors(file: Path) -> Iterator[None]:
    """Raise DatabaseError with a text of one line when SQLite or the file system reports an error in the block."""
    try:
        yield
    except sqlite3.Error as error:
        raise DatabaseError(f"{file} cannot be used: {error}") from error
    except OSError as error:
        raise DatabaseError(f"{error.filename or file}: {error.strerror or error}") from error
