"""The database, as a command opens it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.cli.context import open_settings
from executor.database import schema
from executor.database.engine import open_engine, reading, sqlite_file, transaction
from executor.errors import DatabaseError, DatabaseRefused, DatabaseUnavailable
from executor.settings.settings import Settings

if TYPE_CHECKING:  # only the package database uses SQLAlchemy (import-linter)
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session


@dataclass(frozen=True, kw_only=True)
class Store:
    """An open transaction, and the settings."""

    settings: Settings
    session: Session


@contextmanager
def reading_store() -> Iterator[Store]:
    """Open a read-only transaction. It does not wait for a running agent, and does not delay one.

    Raises DatabaseError when there is no database, or this version cannot read it.
    """
    settings = open_settings()
    with opened(settings) as engine, reading(engine) as session:
        yield Store(settings=settings, session=session)


@contextmanager
def writing_store() -> Iterator[Store]:
    """Open a transaction that is committed at the end of the block. Raises DatabaseError."""
    settings = open_settings()
    with opened(settings) as engine, transaction(engine) as session:
        yield Store(settings=settings, session=session)


@contextmanager
def opened(settings: Settings, *, may_create: bool = False) -> Iterator[Engine]:
    """Open the database for one block. Raises DatabaseError for every error of the driver."""
    if not may_create:
        _refuse_absent(settings.smith_database_url)
    engine = open_engine(settings.smith_database_url)
    try:
        yield engine
    except (DatabaseUnavailable, DatabaseRefused) as error:
        if (problem := _schema_problem(engine)) is not None:
            raise problem from error
        raise
    finally:
        engine.dispose()


def _refuse_absent(url: str) -> None:
    """Raise DatabaseError when there is no SQLite file: SQLite would create an empty one."""
    file = sqlite_file(url)
    if file is None:
        return
    try:
        is_there = file.is_file() and file.stat().st_size > 0
    except OSError as error:
        raise DatabaseError(f"the database {file} cannot be read: {error.strerror}") from error
    if not is_there:
        raise DatabaseError(f"no database yet at {file}: `smith run` creates it (SMITH_DATA_DIR sets the folder)")


def _schema_problem(engine: Engine) -> DatabaseError | None:
    """Return the error for a schema of another version, the most frequent cause of a failing statement."""
    try:
        schema.refuse_newer(engine)
        current, newest = schema.current_revision(engine), schema.head_revision()
    except DatabaseError as known:
        return known
    if current != newest:
        return DatabaseError(
            f"the database has schema {current or 'none'}, this version needs {newest}: run `smith db upgrade`"
        )
    return None
