"""`smith db backup` and `restore`: a copy of the SQLite file while an agent works, and the way back."""

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
from executor.cli.output import tell
from executor.cli.store import opened
from executor.database import schema
from executor.database.engine import open_engine, sqlite_file
from executor.errors import DatabaseError
from executor.settings.settings import Settings

#: What SQLite keeps beside a database that is open, or was not closed.
COMPANIONS = ("-wal", "-shm")


@examples(
    "smith db backup /var/backups/smith-$(date +%F).db     while the agent works",
)
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="Where to; must not exist yet.")],
    as_json: AsJson = False,
) -> None:
    """Copy the SQLite database into one file, as it is at one moment. An agent at work waits for nothing."""
    settings = open_settings()
    _sqlite_file(settings, "pg_dump --format=custom --file=smith.dump 'postgresql://…'")
    if file.exists():
        raise DatabaseError(f"{file} exists: a backup overwrites nothing")
    os.umask(PRIVATE_UMASK)
    partial = file.with_name(f"{file.name}.partial")
    with _explained(file), opened(settings) as engine:
        partial.unlink(missing_ok=True)
        connection = engine.raw_connection()
        try:
            source = connection.driver_connection
            assert isinstance(source, sqlite3.Connection)  # noqa: S101 (the address says so)
            size = _copy(source, partial)
        finally:
            connection.close()
        os.replace(partial, file)
        _sync(file.parent)
    tell(f"{file}: {size} bytes, sound", as_json=as_json, file=str(file), bytes=size)


@examples(
    "smith db restore /var/backups/smith-2026-11-23.db --yes     with the agent stopped",
)
def restore(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="What `smith db backup` wrote.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup in the database's place. The agent must be stopped; the file that was there is kept beside it."""
    settings = open_settings()
    target = _sqlite_file(settings, "pg_restore --clean --if-exists --dbname='postgresql://…' smith.dump")
    os.umask(PRIVATE_UMASK)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = target.with_name(f"{target.name}.restoring")
    with _explained(target), locked(Path(f"{target}.lock")):
        try:
            revision = _checked_copy(file, fresh)
            confirm(f"Put {file} (schema {revision}) in the place of {target}? What is newer is lost.", yes=yes)
            kept = _swap(target, fresh)
        finally:
            _remove(fresh)
    lines = [f"{target} is {file} now" + (f"; what was there is kept as {kept}" if kept else "")]
    if revision != (newest := schema.head_revision()):
        lines.append(f"its schema is {revision}: `smith run` and `smith db upgrade` bring it to {newest}")
    lines.append("what has happened since that backup is not in it: `smith drift` shows what differs")
    tell("\n".join(lines), as_json=as_json, file=str(target), kept=kept and str(kept), schema=revision)


def _sqlite_file(settings: Settings, instead: str) -> Path:
    """Return the database's file. Raises DatabaseError for PostgreSQL, which has tools of its own."""
    file = sqlite_file(settings.smith_database_url)
    if file is None:
        raise DatabaseError(f"the database is no SQLite file: use PostgreSQL's own tool, {instead}")
    return file


# --- a copy -----------------------------------------------------------------------------------------------------


def _copy(source: sqlite3.Connection, target: Path) -> int:
    """Write a sound copy in one file, on the disk when this returns; return its size in bytes.

    All pages in one step: in WAL mode that stops no writer, and a writer does not make it begin again.
    """
    target.touch(mode=0o600, exist_ok=False)
    with contextlib.closing(sqlite3.connect(target)) as copy:
        source.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, which a read-only place can hold
        _refuse_unsound(copy, target)
    with target.open("rb") as handle:
        os.fsync(handle.fileno())
    return target.stat().st_size


def _refuse_unsound(connection: sqlite3.Connection, file: Path) -> None:
    problems = [str(row[0]) for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    problems += [f"broken reference: {row}" for row in connection.execute("PRAGMA foreign_key_check")]
    if problems:
        raise DatabaseError(f"{file} is damaged: {'; '.join(problems[:3])}")


def _checked_copy(file: Path, fresh: Path) -> str:
    """Copy a backup to where it can be swapped in; return its schema. Raises DatabaseError for any other file."""
    _remove(fresh)
    with _explained(file), contextlib.closing(_opened_to_read(file)) as source:
        _copy(source, fresh)
    engine = open_engine(f"sqlite:///{fresh}")
    try:
        schema.refuse_newer(engine)
        revision = schema.current_revision(engine)
    finally:
        engine.dispose()
    if revision is None:
        raise DatabaseError(f"{file} is no database of Agent Smith")
    return revision


def _opened_to_read(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(file.resolve()))}?mode=ro", uri=True)


# --- the swap ---------------------------------------------------------------------------------------------------


def _swap(target: Path, fresh: Path) -> Path | None:
    """Put `fresh` in the target's place; return the name under which the old file is kept, None without one.

    A log that is left beside the new file would be read into it, so it goes before the new file comes; the old file
    has taken in what is in it by then, or it is kept with the old file.
    """
    kept = None
    if target.exists():
        kept = target.with_name(f"{target.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        _take_in_log(target)
        os.link(target, kept)
        for end in COMPANIONS:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{target}{end}", f"{kept}{end}")
        _sync(target.parent)
        for end in COMPANIONS:
            Path(f"{target}{end}").unlink(missing_ok=True)
    os.replace(fresh, target)
    _sync(target.parent)
    return kept


def _take_in_log(target: Path) -> None:
    """Move what SQLite has in its log into the file; a file that is too damaged for that stays as it is."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(target)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _remove(file: Path) -> None:
    for end in ("", *COMPANIONS):
        Path(f"{file}{end}").unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Let the names in a folder survive a power loss."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Say in one line what the file or SQLite has against it."""
    try:
        yield
    except sqlite3.Error as error:
        raise DatabaseError(f"{file} cannot be used: {error}") from error
    except OSError as error:
        raise DatabaseError(f"{error.filename or file}: {error.strerror or error}") from error
