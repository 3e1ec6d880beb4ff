"""Migrates the schema forwards and backwards with Alembic, and checks the database for `smith db check`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from executor.database.engine import error_text
from executor.errors import DatabaseError

#: Key of the PostgreSQL advisory lock that a migration holds, because several agents may start at the same time after
#: an update.
MIGRATION_LOCK = 0x534D4947
#: The folder of the Alembic migrations.
MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrate the schema forwards to `revision`. Raises DatabaseError when the schema is newer than this program."""
    from alembic import command  # noqa: PLC0415 (importing Alembic takes 0.1 s, which `smith --help` avoids)

    refuse_newer(engine)
    with _translating_errors(engine), _migrating(engine) as connection:
        command.upgrade(_alembic_config(connection), revision)


def downgrade(engine: Engine, revision: str = "-1") -> None:
    """Migrate the schema one revision back, or back to `revision`. Raises the same error as `upgrade`."""
    from alembic import command  # noqa: PLC0415 (see upgrade)

    refuse_newer(engine)
    with _translating_errors(engine), _migrating(engine) as connection:
        command.downgrade(_alembic_config(connection), revision)


@contextlib.contextmanager
def _migrating(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that changes the schema. Any other migration waits until this transaction has ended."""
    with engine.execution_options(smith_migrating=True).connect() as connection:
        try:
            with connection.begin():
                if engine.dialect.name == "postgresql":
                    # The statement timeout of `open_engine` is too short for a large table.
                    connection.execute(text("SET LOCAL statement_timeout = 0"))
                    connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
                yield connection
        finally:
            if engine.dialect.name == "sqlite":
                # To change a table of SQLite, Alembic creates a new table and drops the old one. With foreign keys on,
                # the drop would delete every row that refers to the old table. So foreign keys are off on this
                # connection, and no other transaction may use it.
                connection.invalidate()


def current_revision(engine: Engine) -> str | None:
    """Return the revision of the database's schema, None for an empty database."""
    from alembic.migration import MigrationContext  # noqa: PLC0415 (see upgrade)

    with _translating_errors(engine), engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str:
    """Return the newest revision of the schema that this program contains."""
    head: str | None = _script_directory().get_current_head()
    assert head is not None  # noqa: S101 (the package ships at least one migration)
    return head


def refuse_newer(engine: Engine) -> None:
    """Raise DatabaseError when a newer version of Agent Smith has migrated the schema."""
    current = current_revision(engine)
    known = {script.revision for script in _script_directory().walk_revisions()}
    if current is not None and current not in known:
        raise DatabaseError(
            f"the database has schema {current}, which this version (newest: {head_revision()}) does not know: "
            "run the newer Agent Smith, or downgrade the schema with it first (smith db downgrade)"
        )


def check(engine: Engine) -> list[str]:
    """Return a text for each problem of the database; an empty list if it is sound and has the newest schema."""
    refuse_newer(engine)
    problems = []
    current, head = current_revision(engine), head_revision()
    if current != head:
        problems.append(f"schema is {current or 'empty'}, this version needs {head}: run `smith db upgrade`")
    if engine.dialect.name == "sqlite":
        with _translating_errors(engine), engine.connect() as connection:
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
def _translating_errors(engine: Engine) -> Iterator[None]:
    """Translate SQLAlchemy's errors into DatabaseError. No caller retries after this error: an operator must act."""
    try:
        yield
    except SQLAlchemyError as error:
        raise DatabaseError(error_text(engine, error)) from error
