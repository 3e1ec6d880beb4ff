"""Checks the database for `smith db check`: is it sealed, is its schema current, is its file intact?

`smith db migrate` seals a database when it moves the rows to another database. A sealed database refuses every change.
Only an SQLite file is checked for integrity and for broken foreign keys.
"""

from __future__ import annotations

from sqlalchemy import Engine, text

from executor.database import move_queries, revisions, schema
from executor.database.engine import RESTORE_HINT, raise_as_database_error


def find_problems(engine: Engine) -> list[str]:
    """Return a text for each problem of the database. The list is empty if the database has no problem.

    Raises DatabaseError if the schema is that of a newer version of Agent Smith or of another program.
    """
    # The check of a large file takes long. It takes no write lock, so that an agent can write meanwhile.
    engine = engine.execution_options(smith_read_only=True)
    schema.refuse_newer_or_foreign_schema(engine)
    problems = [problem] if (problem := move_queries.why_sealed(engine)) else []
    current_revision, needed_revision = schema.current_revision(engine), revisions.head_revision()
    if current_revision != needed_revision:  # `smith doctor` recognizes this problem by its first words
        problems.append(
            f"schema is {current_revision or 'empty'}, this version needs {needed_revision}: run `smith db upgrade`"
        )
    if engine.dialect.name == "sqlite":
        with raise_as_database_error(engine), engine.connect() as connection:
            integrity_messages = connection.scalars(text("PRAGMA integrity_check"))
            problems += [f"{message}{RESTORE_HINT}" for message in integrity_messages if message != "ok"]
            broken_references = connection.execute(text("PRAGMA foreign_key_check"))
            problems += [
                f"broken foreign key (table, row, referenced table, key): {tuple(row)}" for row in broken_references
            ]
    return problems
