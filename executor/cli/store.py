"""The database, opened for a command."""

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
    """An open transaction, and the settings that led to it."""

    settings: Settings
    session: Session


@contextmanager
def reading_store() -> Iterator[Store]:
    """Open a transaction that only reads: it waits for no agent at work and delays none.

    Raises DatabaseError when there is no database yet, or none that this version can read.
    """
    settings = open_settings()
    with opened(settings) as engine, reading(engine) as session:
        yield Store(settings=settings, session=session)


@contextmanager
def writing_store() -> Iterator[Store]:
    """Open a transaction that is committed at the end of the block, for an operator's verb. Raises DatabaseError."""
    settings = open_settings()
    with opened(settings) as engine, transaction(engine) as session:
        yield Store(settings=settings, session=session)


@contextmanager
def opened(settings: Settings, *, may_create: bool = False) -> Iterator[Engine]:
    """Open the database for one block, with the driver's errors as DatabaseError."""
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
    """Raise DatabaseError where opening would make an empty database: a question must not leave a file behind."""
    file = sqlite_file(url)
    if file is None:
        return
    try:
        is_there = file.is_file() and file.stat().st_size > 0
    except OSError as error:
        raise DatabaseError(f"the database {file} cannot be read: {error.strerror}") from error
    if not is_there:
        raise DatabaseError(f"no database yet at {file}: `smith run` makes it (SMITH_DATA_DIR names another place)")


def _schema_problem(engine: Engine) -> DatabaseError | None:
    """Return what is wrong with the schema: the most frequent reason for a failing statement is another version's."""
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
