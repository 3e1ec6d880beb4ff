"""Reads whether a database is sealed.

A sealed database refuses changes, because `smith db migrate` moves or has moved its rows to another database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from executor.database.core_tables import moves, read_row  # tables for SQLAlchemy Core
from executor.database.engine import INVALID_URL_TEXT, read_only_connection
from executor.errors import DatabaseError
from executor.model import MoveDirection

if TYPE_CHECKING:
    # The import of this ORM class is slow. A value that is annotated as `Move` is a read-only row of SQLAlchemy Core,
    # which has the same attributes.
    from executor.database.tables.moves import Move

#: The parameters of a URL that may contain a secret.
SECRET_PARAMETERS = ("password", "sslpassword")


def url_without_password(url: str | URL) -> str:
    """Return a database's URL without the password (not even as `***`), to store or show the URL."""
    try:
        parsed_url = make_url(url)
    except ArgumentError:  # the text of this error may contain the password
        raise DatabaseError(INVALID_URL_TEXT) from None
    parsed_url = parsed_url.difference_update_query(SECRET_PARAMETERS)
    url_parts = {name: value for name, value in parsed_url._asdict().items() if name != "password"}
    return URL.create(**url_parts).render_as_string()


def find_sealing_move(connection: Connection) -> Move | None:
    """Return the move (of this database's rows to another database) that sealed this database, or None.

    Also return None if the table `moves` does not exist.
    """
    if not inspect(connection).has_table(moves.name):
        return None
    # TO: the rows are moved from this database to another database. A target database has a row with FROM.
    move: Move | None = read_row(connection, select(moves).where(moves.c.direction == MoveDirection.TO))
    return move


def why_sealed(engine: Engine) -> str:
    """Return why this database is sealed, and what the operator can do; '' if the database is not sealed."""
    with read_only_connection(engine) as connection:
        move = find_sealing_move(connection)
    if move is None:
        return ""
    this_url = url_without_password(engine.url)
    if move.completed_at is None:
        remedy = "run `smith db migrate` again to complete the move, or `smith db unseal` to use this database again"
        return f"the database {this_url} is sealed, because its move to {move.url} has not ended: {remedy}"
    # `who` is the user name, in the operating system, of the operator who started the move.
    when_and_who = f"{move.started_at:%Y-%m-%d %H:%M}Z by {move.who}"
    return f"the database {this_url} was moved to {move.url} ({when_and_who}): set SMITH_DATABASE_URL to that database"


def refuse_sealed_database(engine: Engine) -> None:
    """Raise DatabaseError if this database is sealed."""
    if problem := why_sealed(engine):
        raise DatabaseError(problem)
