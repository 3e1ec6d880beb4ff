"""Helpers for statements: INSERT by dialect, the number of changed rows, and references to rows."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import CursorResult, Delete, Update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from executor.database.tables import CriticalJob, Job


def insert_into(session: Session, table: type[Job | CriticalJob]) -> postgresql.Insert | sqlite.Insert:
    """Return the INSERT of the session's dialect: only those have ON CONFLICT."""
    return postgresql.insert(table) if session.get_bind().dialect.name == "postgresql" else sqlite.insert(table)


def rows_changed(session: Session, stmt: Update | Delete) -> int:
    """Run the statement; return how many rows it changed."""
    return cast("CursorResult[Any]", session.execute(stmt)).rowcount


def is_row_id(reference: str) -> bool:
    """True for a text that can be the id of a row: ASCII digits, and no more than an INTEGER column holds."""
    return reference.isascii() and reference.isdecimal() and len(reference) < 10
