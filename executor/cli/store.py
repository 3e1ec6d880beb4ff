"""Opens the database for a command. If the database is missing or has a wrong schema, the error names the remedy.

In this file, "this version" is the installed version of Agent Smith.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.cli.context import open_settings
from executor.database import revisions, schema
from executor.database.engine import open_engine, read_only_connection, sqlite_file, transaction
from executor.errors import DatabaseError, DatabaseUnavailable, StatementRefused
from executor.settings.settings import Settings

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session


@dataclass(frozen=True, kw_only=True)
class ReadOnlyTransaction:
    """The connection of an open read-only transaction, and the settings."""

    settings: Settings
    connection: Connection


@dataclass(frozen=True, kw_only=True)
class WritableTransaction:
    """The session of an open transaction that may change rows, and the settings."""

    settings: Settings
    session: Session


@contextmanager
def read_only_transaction() -> Iterator[ReadOnlyTransaction]:
    """Open a read-only transaction for the block. The transaction neither waits for a running agent nor delays it.

    SQLAlchemy's ORM is not imported, because the import is slow.

    Raises DatabaseError when there is no database, or when this version cannot read the database's schema.
    """
    settings = open_settings()
    with open_database(settings) as engine, read_only_connection(engine) as connection:
        yield ReadOnlyTransaction(settings=settings, connection=connection)


@contextmanager
def writable_transaction() -> Iterator[WritableTransaction]:
    """Open a transaction that is committed at the end of the block. Raises DatabaseError."""
    settings = open_settings()
    with open_database(settings) as engine, transaction(engine) as session:
        yield WritableTransaction(settings=settings, session=session)


@contextmanager
def open_database(settings: Settings, *, may_create: bool = False) -> Iterator[Engine]:
    """Open the database for the block. Raises DatabaseError if there is no database.

    An SQL statement in the block may fail because the database is sealed (its rows were moved to another database), or
    because its schema is older or newer than this version needs. Then a DatabaseError that names this problem is
    raised in place of the statement's error. With `may_create`, a SQLite file that does not exist is created.
    """
    if not may_create:
        _require_existing_sqlite_file(settings.smith_database_url)
    engine = open_engine(settings.smith_database_url)
    try:
        yield engine
    except (DatabaseUnavailable, StatementRefused) as error:
        # `cause` is the DatabaseError that is raised in place of `error`.
        cause = _find_seal_or_schema_problem(engine)
        if cause is not None:
            raise cause from error
        raise
    finally:
        engine.dispose()


@contextmanager
def open_database_if_exists(settings: Settings) -> Iterator[Engine | None]:
    """Open the database for the block, or yield None if its SQLite file is missing, because no agent has run yet."""
    file = sqlite_file(settings.smith_database_url)
    if file is not None and not file.exists():
        yield None
        return
    with open_database(settings) as engine:
        yield engine


def _require_existing_sqlite_file(url: str) -> None:
    """Raise DatabaseError if the SQLite file is missing or empty. SQLite itself would create an empty file."""
    file = sqlite_file(url)
    if file is None:
        return
    try:
        has_content = file.is_file() and file.stat().st_size > 0
    except OSError as error:
        raise DatabaseError(f"the database {file} cannot be read: {error.strerror}") from error
    if not has_content:
        raise DatabaseError(f"no database yet at {file}: `smith run` creates it (SMITH_DATA_DIR sets the folder)")


def _find_seal_or_schema_problem(engine: Engine) -> DatabaseError | None:
    """Return an error if the database is sealed, or if its schema is older or newer than this version needs.

    Returns None if the database is not sealed and has the needed schema. This function is called after a statement has
    failed, to find the cause.
    """
    from executor.database import move_queries  # noqa: PLC0415 (used only after an error)

    try:
        move_queries.refuse_sealed_database(engine)
        schema.refuse_newer_or_foreign_schema(engine)  # a foreign schema has the tables of another program
        current_revision, needed_revision = schema.current_revision(engine), revisions.head_revision()
    except DatabaseError as error:
        return error
    if current_revision == needed_revision:
        return None
    return DatabaseError(
        f"the database has schema {current_revision or 'none'}, but this version of Agent Smith needs schema "
        f"{needed_revision}: run `smith db upgrade`"
    )
