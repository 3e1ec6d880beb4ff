"""What SQLAlchemy spells differently for each dialect, or not at all."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import CursorResult, Delete, Update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from executor.database.tables import CriticalJob, Job


def insert_into(session: Session, table: type[Job | CriticalJob]) -> postgresql.Insert | sqlite.Insert:
    """Return the dialect's own INSERT, the only one that knows ON CONFLICT."""
    return postgresql.insert(table) if session.get_bind().dialect.name == "postgresql" else sqlite.insert(table)


def rows_changed(session: Session, stmt: Update | Delete) -> int:
    """Run the statement; return how many rows it changed."""
    return cast("CursorResult[Any]", session.execute(stmt)).rowcount
