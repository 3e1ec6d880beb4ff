"""Reads the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import select

from executor.database.core_tables import audit, read_rows

if TYPE_CHECKING:  # The import of AuditEntry is slow. The query returns read-only rows with the same attributes.
    # A Reader is a connection or a session.
    from executor.database.core_tables import Reader
    from executor.database.tables.audit import AuditEntry


def list_entries(
    reader: Reader, *, subject_id_prefix: str = "", verb: str = "", since: datetime | None = None, limit: int = 50
) -> Sequence[AuditEntry]:
    """Return at most `limit` entries, newest first.

    With `subject_id_prefix`, return only entries whose `subject_id` begins with it. With `verb`, return only entries
    with this verb. With `since`, return only entries that were made at this time or later.
    """
    stmt = select(audit).order_by(audit.c.id.desc()).limit(limit)
    if subject_id_prefix:
        stmt = stmt.where(audit.c.subject_id.startswith(subject_id_prefix, autoescape=True))
    if verb:
        stmt = stmt.where(audit.c.verb == verb)
    if since is not None:
        stmt = stmt.where(audit.c.at >= since)
    return read_rows(reader, stmt)
