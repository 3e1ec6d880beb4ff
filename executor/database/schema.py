"""The schema: Alembic's migrations in both directions, and the checks of `smith db check`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from executor.database.engine import error_text
from executor.errors import DatabaseError

#: PostgreSQL's advisory lock around a migration: after an update several nodes may start at once.
MIGRATION_LOCK = 0x534D4947
MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrate the schema forwards to `revision`. Raises DatabaseError for a schema newer than this program."""
    from alembic import command  # noqa: PLC0415 (its import takes a tenth of a second, which `smith --help` avoids)

    refuse_newer(engine)
    with _translated(engine), _migrating(engine) as connection:
        command.upgrade(_alembic_config(connection), revision)


def downgrade(engine: Engine, revision: str = "-1") -> None:
    """Migrate the schema one step back, or back to `revision`. Raises what `upgrade` raises."""
    from alembic import command  # noqa: PLC0415 (see upgrade)

    refuse_newer(engine)
    with _translated(engine), _migrating(engine) as connection:
        command.downgrade(_alembic_config(connection), revision)


@contextlib.contextmanager
def _migrating(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that changes the schema. Another migration waits until this one has ended."""
    with engine.execution_options(smith_migrating=True).connect() as connection:
        try:
            with connection.begin():
                if engine.dialect.name == "postgresql":
                    connection.execute(text("SET LOCAL statement_timeout = 0"))  # a large table takes longer
                    connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
                yield connection
        finally:
            if engine.dialect.name == "sqlite":
                # This connection has its foreign keys off: Alembic replaces a table by dropping the old one, which
                # would delete every row that refers to it. No other code may get this connection.
                connection.invalidate()


def current_revision(engine: Engine) -> str | None:
    """Return the schema's revision, None for an empty database."""
    from alembic.migration import MigrationContext  # noqa: PLC0415 (see upgrade)

    with _translated(engine), engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str:
    """Return the newest revision of this program."""
    head: str | None = _script_directory().get_current_head()
    assert head is not None  # noqa: S101 (the package ships at least one migration)
    return head


def refuse_newer(engine: Engine) -> None:
    """Raise DatabaseError when a newer Agent Smith has migrated the schema."""
    current = current_revision(engine)
    known = {script.revision for script in _script_directory().walk_revisions()}
    if current is not None and current not in known:
        raise DatabaseError(
            f"the database has schema {current}, which this version (newest: {head_revision()}) does not know: "
            "run the newer Agent Smith, or downgrade the schema with it first (smith db downgrade)"
        )


def check(engine: Engine) -> list[str]:
    """Return the problems of the database, one text for each; none for a sound database with the newest schema."""
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
    """Translate SQLAlchemy's errors into DatabaseError: a person changes schemas, so nothing retries."""
    try:
        yield
    except SQLAlchemyError as error:
        raise DatabaseError(error_text(engine, error)) from error
