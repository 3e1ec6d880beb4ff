"""Provides helpers for SQL: INSERT statements with ON CONFLICT, the number of changed rows, and a check of row ids."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import CursorResult, Delete, Update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from executor.database.tables import CriticalJob, Job


def insert_into(session: Session, table: type[Job | CriticalJob]) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT for the session's database, because SQLAlchemy's general INSERT has no ON CONFLICT."""
    return postgresql.insert(table) if session.get_bind().dialect.name == "postgresql" else sqlite.insert(table)


def rows_changed(session: Session, stmt: Update | Delete) -> int:
    """Run the statement and return how many rows it changed."""
    return cast("CursorResult[Any]", session.execute(stmt)).rowcount


def is_row_id(reference: str) -> bool:
    """Return whether a text can be the id of a row: it has only ASCII digits, and its number fits into an INTEGER."""
    return reference.isascii() and reference.isdecimal() and len(reference) < 10
