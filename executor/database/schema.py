"""Migrates the schema forwards and backwards with Alembic, and reads which revision a database has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, String, column, func, inspect, select, table

from executor.database import revisions
from executor.database.engine import raise_as_database_error
from executor.errors import DatabaseError, SchemaTooNew

if TYPE_CHECKING:
    from executor.database.core_tables import Reader

#: The key of the PostgreSQL advisory lock that a migration holds. After an update, several agent processes may start at
#: the same time, and only one of them may migrate the schema. The value is the ASCII text "SMIG".
MIGRATION_LOCK_KEY = 0x534D4947
#: The table in which Alembic stores the revision. After a downgrade of all revisions, the table exists and is empty.
ALEMBIC_TABLE = "alembic_version"
_REVISION_QUERY = select(column("version_num", String())).select_from(table(ALEMBIC_TABLE))
#: The maximum number of tables that an error text names.
MAX_LISTED_TABLES = 3


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrate the schema forwards to `revision`. Raises SchemaTooNew when the schema is newer than this program."""
    from alembic import command  # noqa: PLC0415 (importing Alembic takes 0.1 s, which `smith --help` avoids)

    refuse_newer_or_foreign_schema(engine)
    with raise_as_database_error(engine), _migration_transaction(engine) as connection:
        command.upgrade(_alembic_config(connection), revision)


def downgrade(
    engine: Engine, revision: str = "-1", check_in_transaction: Callable[[Connection], None] | None = None
) -> None:
    """Migrate the schema back to `revision`, by default by one revision. Raises SchemaTooNew, like `upgrade`.

    `check_in_transaction` is called after other migrations have ended, and before the schema is changed. If it raises
    an exception, the schema does not change.
    """
    from alembic import command  # noqa: PLC0415 (see upgrade)

    refuse_newer_or_foreign_schema(engine)
    with raise_as_database_error(engine), _migration_transaction(engine) as connection:
        if check_in_transaction is not None:
            check_in_transaction(connection)
        command.downgrade(_alembic_config(connection), revision)


@contextlib.contextmanager
def _migration_transaction(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that changes the schema. Other migrations wait until this transaction has ended."""
    # On SQLite, `smith_migrating` turns the checks of foreign keys off on this connection (in engine.py).
    with engine.execution_options(smith_migrating=True).connect() as connection:
        try:
            with connection.begin(), contextlib.ExitStack() as stack:
                if engine.dialect.name == "postgresql":
                    from executor.database.postgresql import without_timeouts  # noqa: PLC0415 (psycopg is optional)

                    stack.enter_context(without_timeouts(connection))  # to migrate a large table takes long
                    connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK_KEY)))
                yield connection
        finally:
            if engine.dialect.name == "sqlite":
                # On SQLite, Alembic changes a table by creating a new table and dropping the old one. With enforced
                # foreign keys, the drop would delete every row that refers to the old table. `smith_migrating` prevents
                # this. The pool discards the connection, so that no other transaction runs without foreign keys.
                connection.invalidate()


def current_revision(engine: Engine) -> str | None:
    """Return the revision that Alembic has stored in the database, or None if there is none."""
    with raise_as_database_error(engine), engine.connect() as connection:
        return connection.scalar(_REVISION_QUERY) if inspect(connection).has_table(ALEMBIC_TABLE) else None


def current_revision_in_transaction(reader: Reader) -> str | None:
    """Return the revision of the schema, read in the caller's transaction. Alembic's table must exist.

    `reader` is a connection or a session of SQLAlchemy.
    """
    return reader.scalar(_REVISION_QUERY)


def refuse_newer_or_foreign_schema(engine: Engine) -> None:
    """Raise SchemaTooNew when a newer version of Agent Smith has migrated the schema.

    Raises DatabaseError when an SQLite file has the tables of another program.
    """
    revision = current_revision(engine)
    if revision is not None and revision not in revisions.revisions_of_this_program():
        raise SchemaTooNew(
            f"the database has schema {revision}, which this version (newest schema: {revisions.head_revision()}) does "
            "not know: run the newer version of Agent Smith, or let the newer version downgrade the schema "
            "(smith db downgrade)"
        )
    if revision is None and engine.dialect.name == "sqlite":
        _refuse_tables_of_another_program(engine)


def _refuse_tables_of_another_program(engine: Engine) -> None:
    """Raise DatabaseError when the SQLite file has tables, but not Alembic's table."""
    with raise_as_database_error(engine), engine.connect() as connection:
        tables = sorted(inspect(connection).get_table_names())
    # After the caller has read that there is no revision, another process may have created Agent Smith's tables. Then
    # Alembic's table exists, too, because one transaction creates all of them.
    if tables and ALEMBIC_TABLE not in tables:
        names = ", ".join(tables[:MAX_LISTED_TABLES])
        raise DatabaseError(
            f"the database {engine.url.database} has the tables of another program ({names}): "
            "set SMITH_DATABASE_URL to another file, or SMITH_DATA_DIR to another folder"
        )


def _alembic_config(connection: Any) -> Any:
    from alembic.config import Config  # noqa: PLC0415 (see upgrade)

    config = Config()
    config.set_main_option("script_location", str(revisions.MIGRATIONS_FOLDER))
    config.attributes["connection"] = connection
    return config
