"""Reads whether `smith db migrate` has moved the rows of a database to another database, which seals the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from executor.database.core_tables import moves, read_row
from executor.database.engine import INVALID_URL_TEXT, reading_without_orm
from executor.errors import DatabaseError
from executor.model import MoveDirection

if TYPE_CHECKING:  # The class needs the ORM. A row that a query returns has the attributes of the class.
    from executor.database.tables.moves import Move

#: The parameters of a URL that may contain a secret.
SECRET_PARAMETERS = ("password", "sslpassword")


def url_without_password(url: str | URL) -> str:
    """Return a database's URL without the password, and without a mask such as `***`, to store or show the URL."""
    try:
        parsed_url = make_url(url)
    except ArgumentError:  # the text of this error may contain the password
        raise DatabaseError(INVALID_URL_TEXT) from None
    parsed_url = parsed_url.difference_update_query(SECRET_PARAMETERS)
    url_parts = {name: value for name, value in parsed_url._asdict().items() if name != "password"}
    return URL.create(**url_parts).render_as_string()


def find_sealing_move(connection: Connection) -> Move | None:
    """Return the move that has sealed this database, or None. Also return None if the table `moves` does not exist."""
    if not inspect(connection).has_table(moves.name):
        return None
    move: Move | None = read_row(connection, select(moves).where(moves.c.direction == MoveDirection.TO))
    return move


def why_sealed(engine: Engine) -> str:
    """Return why this database is sealed, and what the operator can do; '' if the database is not sealed."""
    with reading_without_orm(engine) as connection:
        move = find_sealing_move(connection)
    if move is None:
        return ""
    this_url = url_without_password(engine.url)
    if move.completed_at is None:
        remedy = "run `smith db migrate` again to complete the move, or `smith db unseal` to use this database again"
        return f"the database {this_url} is sealed, because its move to {move.url} has not ended: {remedy}"
    when_and_who = f"{move.started_at:%Y-%m-%d %H:%M}Z by {move.who}"
    return f"the database {this_url} was moved to {move.url} ({when_and_who}): set SMITH_DATABASE_URL to that database"


def refuse_sealed_database(engine: Engine) -> None:
    """Raise DatabaseError if this database is sealed."""
    if problem := why_sealed(engine):
        raise DatabaseError(problem)
