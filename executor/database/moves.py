"""Seals a database whose rows are moved to another database. A sealed database refuses every change.

A move copies every row of one database, the source, to another database, the target. In both databases, a row of the
table `moves` records the move. In the source, this row is the seal. Triggers are created together with the seal, and
dropped together with the seal. With these triggers, the source itself refuses every change of a table other than
`moves`. So neither an agent process that the operating system suspended during the move nor a command of an earlier
version can change the source.

No function of this module commits: the caller commits the transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from executor.database import audit, move_queries
from executor.database.tables.moves import Move
from executor.database.times import utc_now
from executor.model import MoveDirection

if TYPE_CHECKING:
    from sqlalchemy import Table

#: The error text of the triggers.
TRIGGER_ERROR_TEXT = "the rows of this database were moved to another database: `smith db check` names that database"
_TRIGGER_FUNCTION = "refuse_change_of_moved_database"
_TRIGGER_OPERATIONS = ("INSERT", "UPDATE", "DELETE")


def tables_to_move() -> list[Table]:
    """Return the tables whose rows are moved, each after the tables to which its foreign keys refer."""
    from executor.database.tables.all_tables import METADATA  # noqa: PLC0415 (slow, and most commands do not need it)

    return [table for table in METADATA.sorted_tables if table.name != Move.__tablename__]


def seal(session: Session, *, target_url: str, who: str, refuse_if_in_use: Callable[[Session], None]) -> Move:
    """Seal this database; return the new row of the move.

    `refuse_if_in_use` raises an error if an agent, or a playbook run of an operator, uses the database. No other
    transaction changes a row between this check and the commit: on SQLite, the transaction of `session` has the write
    lock, and on PostgreSQL, it locks the tables.
    """
    if session.get_bind().dialect.name == "postgresql":
        names = ", ".join(table.name for table in tables_to_move())
        session.connection().exec_driver_sql(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")
    refuse_if_in_use(session)
    # `TO` means that this database is the source.
    move = Move(id=uuid.uuid4().hex, direction=MoveDirection.TO, url=target_url, who=who, started_at=utc_now())
    session.add(move)
    _record_in_audit(session, move, verb="seal", who=who)
    for statement in _statements_to_create_triggers(session):
        session.connection().exec_driver_sql(statement)
    return move


def unseal(session: Session, *, who: str, reason: str) -> Move | None:
    """Remove the seal and its triggers. Return the move that had sealed this database; None if it was not sealed."""
    move = move_queries.find_sealing_move(session.connection())
    if move is None:
        return None
    for statement in _statements_to_drop_triggers(session):
        session.connection().exec_driver_sql(statement)
    session.execute(delete(Move).where(Move.id == move.id))
    _record_in_audit(session, move, verb="unseal", who=who, reason=reason)
    return move


def mark_move_completed(session: Session, move_id: str) -> None:
    """Store in the source that its move is complete."""
    move = session.get_one(Move, move_id)
    move.completed_at = move.completed_at or utc_now()


def _record_in_audit(session: Session, move: Move, *, verb: str, who: str, reason: str = "") -> None:
    values: dict[str, Any] = {"moved_to": move.url}
    before, after = (values, None) if verb == "unseal" else (None, values)
    audit.add_entry(
        session,
        who=who,
        verb=verb,
        subject_kind="database",
        subject_id=move.id,
        before=before,
        after=after,
        reason=reason,
    )


def _statements_to_create_triggers(session: Session) -> Iterator[str]:
    if session.get_bind().dialect.name == "sqlite":
        refusal = f"BEGIN SELECT RAISE(ABORT, '{TRIGGER_ERROR_TEXT}'); END"
        for name, table_name, operation in _sqlite_triggers():
            yield f"CREATE TRIGGER {name} BEFORE {operation} ON {table_name} {refusal}"
        return
    # The driver raises ProgrammingError for `insufficient_privilege`. The agent does not retry after ProgrammingError.
    raise_text = f"RAISE EXCEPTION '{TRIGGER_ERROR_TEXT}' USING ERRCODE = 'insufficient_privilege'"
    yield f"CREATE FUNCTION {_TRIGGER_FUNCTION}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {raise_text}; END $$"
    for table in tables_to_move():
        yield (
            f"CREATE TRIGGER sealed_{table.name} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table.name} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {_TRIGGER_FUNCTION}()"
        )


def _statements_to_drop_triggers(session: Session) -> Iterator[str]:
    if session.get_bind().dialect.name == "sqlite":
        yield from (f"DROP TRIGGER {name}" for name, _table_name, _operation in _sqlite_triggers())
        return
    for table in tables_to_move():
        yield f"DROP TRIGGER sealed_{table.name} ON {table.name}"
    yield f"DROP FUNCTION {_TRIGGER_FUNCTION}()"


def _sqlite_triggers() -> Iterator[tuple[str, str, str]]:
    """Yield the name, the table and the operation of each trigger."""
    for table in tables_to_move():
        for operation in _TRIGGER_OPERATIONS:
            yield f"sealed_{table.name}_{operation.lower()}", table.name, operation
