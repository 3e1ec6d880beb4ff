"""Provides helpers for SQL: INSERT with ON CONFLICT, counts of changed rows, and conditions.

`is_wait_over` is the condition that a wait, such as a backoff, is over. Two functions check whether a text from an
operator may be a row id or the beginning of a UUID.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import ColumnElement, CursorResult, Delete, Update, or_

from executor.database.times import db_now

if TYPE_CHECKING:  # These imports are slow, and commands that only read do not need them.
    from sqlalchemy.dialects import postgresql, sqlite
    from sqlalchemy.orm import Session

    from executor.database.tables.base import Base

#: Every number with at most this many digits fits into an INTEGER column. PostgreSQL refuses a comparison with a number
#: that does not fit.
MAX_INTEGER_DIGITS = 9
#: A number with fewer digits is not taken as the beginning of a UUID. Commands show the first 8 characters of a UUID.
MIN_DIGITS_OF_ID_PREFIX = 8
#: The maximum backoff of a job or a report. A longer backoff, which FulcrumCore may request with the header
#: `Retry-After`, is shortened to this.
MAX_BACKOFF_S = 3600.0


def insert_into(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT statement for the session's database. Unlike `sqlalchemy.insert`, it supports ON CONFLICT."""
    # Only SQLAlchemy's dialect for the session's database is imported: the import of the PostgreSQL dialect would take
    # a tenth of the time of `smith status`.
    dialect = import_module(f"sqlalchemy.dialects.{session.get_bind().dialect.name}")
    return cast("postgresql.Insert | sqlite.Insert", dialect.insert(table))


def execute_and_count(session: Session, stmt: Update | Delete) -> int:
    """Run the statement and return how many rows it changed."""
    return cast("CursorResult[Any]", session.execute(stmt)).rowcount


def is_wait_over(wait_end: Any, max_wait_s: float) -> ColumnElement[bool]:
    """Return the SQL condition that a wait is over. `wait_end` is the column with the end of the wait; NULL: no wait.

    No wait is longer than `max_wait_s`. If the end is further in the future, the database's clock was set back after
    the wait had begun. Then the wait counts as over.
    """
    return or_(wait_end.is_(None), wait_end <= db_now(), wait_end > db_now(max_wait_s))


def fits_integer_column(text: str) -> bool:
    """Return whether a text is a number that an INTEGER column can hold: it has one to MAX_INTEGER_DIGITS digits."""
    return text.isascii() and text.isdecimal() and len(text) <= MAX_INTEGER_DIGITS


def could_be_id_prefix(text: str) -> bool:
    """Return whether this text from an operator could be the beginning of a UUID.

    A short number is always a job number or a VMID, and never the beginning of a UUID. Otherwise, if no job had the
    number 17, `smith jobs cancel 17` would cancel a job whose UUID begins with 17.
    """
    return bool(text) and not (text.isdecimal() and len(text) < MIN_DIGITS_OF_ID_PREFIX)
