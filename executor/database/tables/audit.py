"""Defines the table of audit entries, which say who changed which object, and why.

This module has no `from __future__ import annotations`: with it, the annotations would be texts, and SQLAlchemy would
compile each of these texts at the start of every command that reads the database.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from executor.database.tables.base import Base


class AuditEntry(Base):
    """One change that an operator or the agent made.

    Only the module `audit` inserts rows. Only the module `erasure`, which erases a service's data, changes rows.
    Triggers (migrations 0002 and 0006) refuse every DELETE, and every UPDATE except an UPDATE that erases the values
    (`before`, `after` and `reason`).
    """

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    who: Mapped[str] = mapped_column(String(100))  #: the operator's user name in the operating system, or `agent`
    verb: Mapped[str] = mapped_column(String(40))  #: the kind of change, for example `cancel`
    #: `job`, `mapping`, `service`, `database`, or `agents`: the agent processes to which a pause or a limit applies.
    subject_kind: Mapped[str] = mapped_column(String(20))
    subject_id: Mapped[str] = mapped_column(String(100))
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    reason: Mapped[str | None] = mapped_column(Text)
