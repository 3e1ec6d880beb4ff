"""Defines the table of sessions: each is a login of an operator at the web pages.

This module has no `from __future__ import annotations`: with it, the annotations would be texts, and SQLAlchemy would
compile each of these texts at the start of every command that reads the database.
"""

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from executor.database.tables.base import Base


class WebSession(Base):
    """A session, which lasts until `expires_at`. Only the module `web_sessions` writes this table."""

    __tablename__ = "web_sessions"

    #: An HMAC of the session's key, in hexadecimal digits. Only the browser has the key.
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(60))  #: the name that the operator has entered, for the audit log
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
