"""Stores the sessions of the web pages: each web session is a login of an operator. No function commits.

A row contains only a digest of the web session's key. The key itself is only in the operator's browser.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from executor.database.tables.web_sessions import WebSession
from executor.database.times import utc_now

#: The length of the column `name`.
MAX_NAME_LENGTH = 60


def truncated_name(name: str) -> str:
    """Return the name of an operator, cut to the length of its column."""
    return name[:MAX_NAME_LENGTH]


def add(session: Session, *, digest: str, name: str, lifetime: timedelta) -> None:
    """Store a web session, and delete all expired web sessions."""
    now = utc_now()
    session.execute(delete(WebSession).where(WebSession.expires_at <= now))
    session.add(WebSession(digest=digest, name=truncated_name(name), created_at=now, expires_at=now + lifetime))
    session.flush()


def find(session: Session, digest: str) -> WebSession | None:
    """Return the web session with this digest; None if it does not exist or has expired."""
    stmt = select(WebSession).where(WebSession.digest == digest, WebSession.expires_at > utc_now())
    return session.scalar(stmt)


def end(session: Session, digest: str) -> None:
    """Delete a web session. Do nothing if it does not exist."""
    session.execute(delete(WebSession).where(WebSession.digest == digest))
