"""Copies every row of a sealed database, the source, to an empty database, the target, and compares their rows.

The copy is one step of `smith db migrate`, which moves all rows to another database (a move). Each of the two databases
records the move as a row of its table `moves`. The command seals the source before the copy. A sealed database refuses
every change.

One transaction changes the target. If the copy is killed, the target stays empty, and the next copy starts from the
beginning. The rows are read and written in batches, so that the used memory does not grow with the database.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Table, func, insert, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from executor.database import move_queries, moves
from executor.database.engine import error_text, raise_as_database_error
from executor.database.tables.moves import Move
from executor.database.times import utc_now
from executor.errors import DatabaseError
from executor.model import MoveDirection

if TYPE_CHECKING:
    from sqlalchemy import Engine

#: The number of rows that are read and written at once. The largest rows have about 100 KiB: a row of the table
#: `manual_runs` contains the output of a run.
ROWS_PER_BATCH = 200
#: The key of the PostgreSQL advisory lock of a copy to a database. The value is the ASCII text "SMIV".
COPY_LOCK_KEY = 0x534D4956
_DIGEST_MODULUS = 2**256


@dataclass(frozen=True, kw_only=True)
class TableContent:
    """The number of rows of a table, and a digest of the rows. The digest does not depend on the order of the rows."""

    row_count: int = 0
    digest: int = 0

    def with_rows(self, rows: list[Mapping[Any, Any]]) -> TableContent:
        """Return the content of the table after these rows were added."""
        digests = (int.from_bytes(hashlib.sha256(_canonical_json(row)).digest()) for row in rows)
        digest = (self.digest + sum(digests)) % _DIGEST_MODULUS
        return TableContent(row_count=self.row_count + len(rows), digest=digest)


def find_tables_with_rows(engine: Engine) -> list[str]:
    """Return the names of Agent Smith's tables, except `moves`, that have rows."""
    # With `smith_read_only`, a transaction on SQLite takes no write lock.
    with raise_as_database_error(engine), engine.execution_options(smith_read_only=True).connect() as connection:
        return _tables_with_rows(connection)


def is_copy_committed(engine: Engine, move_id: str) -> bool:
    """Return whether the rows of this move were copied to this database and committed.

    `copy_tables` commits the copied rows and this database's row of the move in one transaction. The direction of the
    row is FROM: the rows came from another database.
    """
    with raise_as_database_error(engine), engine.execution_options(smith_read_only=True).connect() as connection:
        if not inspect(connection).has_table(Move.__tablename__):
            return False
        is_row_of_move = (Move.id == move_id) & (Move.direction == MoveDirection.FROM)
        return connection.scalar(select(Move.id).where(is_row_of_move)) is not None


def copy_tables(
    source: Engine, target: Engine, move: Move, on_progress: Callable[[str, int], None]
) -> dict[str, TableContent]:
    """Copy every row, compare both databases, and commit; return what each table contains.

    `move` is the row of the move in the source. `move.who` is the user name of the operator who started the move.
    `on_progress` is called after each batch, with the name of the table and the number of its rows that were copied so
    far. Raises DatabaseError if the target is not empty, if it refuses a row, or if its rows differ from the source's
    rows afterwards. After this error, the target is unchanged.
    """
    read_only_source = source.execution_options(smith_read_only=True)
    with (
        raise_as_database_error(target),
        read_only_source.connect() as reader,
        target.connect() as writer,
        writer.begin(),
        ExitStack() as stack,
    ):
        for connection in (reader, writer):
            if connection.dialect.name == "postgresql":
                _remove_time_limits(connection, stack)
        if target.dialect.name == "postgresql":
            _lock_target(writer)
        if tables_with_rows := _tables_with_rows(writer):
            raise DatabaseError(_not_empty_text(target, tables_with_rows))
        content_by_table = {}
        for table in moves.tables_to_move():
            content_by_table[table.name] = _copy_table(reader, writer, table, on_progress)
            if _read_content(writer, table) != content_by_table[table.name]:
                problem = "differ between both databases after the copy; nothing was stored"
                raise DatabaseError(f"the rows of the table {table.name} {problem}")
            if target.dialect.name == "postgresql":
                _set_sequence(writer, table)
        columns = {
            "direction": MoveDirection.FROM,
            "url": move_queries.url_without_password(source.url),
            "who": move.who,
        }
        times = {"started_at": move.started_at, "completed_at": utc_now()}
        writer.execute(insert(Move), {"id": move.id, **columns, **times})
    return content_by_table


def refuse_nonempty_database(engine: Engine) -> None:
    """Raise DatabaseError if one of Agent Smith's tables, except `moves`, has rows."""
    if tables_with_rows := find_tables_with_rows(engine):
        raise DatabaseError(_not_empty_text(engine, tables_with_rows))


def _not_empty_text(engine: Engine, tables_with_rows: list[str]) -> str:
    url = move_queries.url_without_password(engine.url)
    names = ", ".join(tables_with_rows)
    return f"the database {url} is not empty (rows in {names}): give the URL of an empty database; nothing was changed"


def _remove_time_limits(connection: Connection, stack: ExitStack) -> None:
    """Remove the time limits of this connection, because it is idle while the other connection reads or writes."""
    from executor.database.postgresql import without_timeouts  # noqa: PLC0415 (its driver is optional)

    stack.enter_context(without_timeouts(connection))


def _lock_target(connection: Connection) -> None:
    """Lock the target, a PostgreSQL database, so that only this transaction writes to it.

    Raises DatabaseError if another copy to the target is running.
    """
    if not connection.scalar(select(func.pg_try_advisory_xact_lock(COPY_LOCK_KEY))):
        raise DatabaseError("another command is copying rows to the target database: wait until that command has ended")
    names = ", ".join(table.name for table in moves.tables_to_move())
    connection.exec_driver_sql(f"LOCK TABLE {names} IN EXCLUSIVE MODE")


def _tables_with_rows(connection: Connection) -> list[str]:
    inspector = inspect(connection)
    existing_tables = [table for table in moves.tables_to_move() if inspector.has_table(table.name)]
    # Only the primary key is read: an earlier schema may lack other columns.
    return [
        table.name
        for table in existing_tables
        if connection.execute(select(next(iter(table.primary_key.columns))).limit(1)).first() is not None
    ]


def _copy_table(
    reader: Connection, writer: Connection, table: Table, on_progress: Callable[[str, int], None]
) -> TableContent:
    content = TableContent()
    # If the block fails, `closing` ends the generator at once, and the generator closes its cursor in PostgreSQL.
    with closing(_batches(reader, table)) as batches:
        for rows in batches:
            try:
                writer.execute(insert(table), [dict(row) for row in rows])
            except SQLAlchemyError as error:
                reason = error_text(writer.engine, error)
                raise DatabaseError(f"the target refused rows of the table {table.name}: {reason}") from error
            content = content.with_rows(rows)
            on_progress(table.name, content.row_count)
    return content


def _read_content(connection: Connection, table: Table) -> TableContent:
    content = TableContent()
    for rows in _batches(connection, table):
        content = content.with_rows(rows)
    return content


def _batches(connection: Connection, table: Table) -> Generator[list[Mapping[Any, Any]], None, None]:
    """Yield the rows of a table in batches. PostgreSQL keeps the remaining rows in a cursor."""
    stmt = select(table).order_by(*table.primary_key.columns)
    with raise_as_database_error(connection.engine):
        options = {"yield_per": ROWS_PER_BATCH}
        with connection.execute(stmt, execution_options=options) as result:  # closes the cursor
            for rows in result.mappings().partitions():
                yield list(rows)


def _canonical_json(row: Mapping[Any, Any]) -> bytes:
    """Return the values of a row as JSON that is the same for SQLite and for PostgreSQL."""
    values = {str(name): value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
    return json.dumps(values, sort_keys=True).encode()


def _set_sequence(connection: Connection, table: Table) -> None:
    """Set the sequence of the ids in PostgreSQL, so that the next row gets a higher id than every copied row."""
    column = table.autoincrement_column
    if column is not None:
        sequence = func.pg_get_serial_sequence(table.name, column.name)
        # If the table is empty, `max` returns NULL, and `setval` changes nothing.
        connection.execute(select(func.setval(sequence, select(func.max(column)).scalar_subquery())))
