"""Counts the rows of each table, and reads version and size of the database, for the archive of `smith support`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from executor.database.tables.all_tables import METADATA


def row_counts(session: Session) -> dict[str, int]:
    """Return the number of rows of each table."""
    tables = sorted(METADATA.tables.items())
    return {name: session.scalar(select(func.count()).select_from(table)) or 0 for name, table in tables}


def describe_database(session: Session) -> dict[str, Any]:
    """Return the kind of the database, its version, its size in bytes and, for SQLite, the size of its unused pages."""
    dialect = session.get_bind().dialect.name
    if dialect == "postgresql":
        version = session.scalar(text("SHOW server_version"))
        size_bytes = session.scalar(text("SELECT pg_database_size(current_database())"))
        return {"kind": dialect, "version": version, "bytes": size_bytes}
    page_size_bytes = session.scalar(text("PRAGMA page_size")) or 0
    page_count = session.scalar(text("PRAGMA page_count")) or 0
    unused_page_count = session.scalar(text("PRAGMA freelist_count")) or 0
    return {
        "kind": dialect,
        "version": session.scalar(text("SELECT sqlite_version()")),
        "bytes": page_size_bytes * page_count,
        "unused_bytes": page_size_bytes * unused_page_count,
    }
