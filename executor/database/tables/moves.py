"""Defines the table `moves`. Each of its rows is a move of all rows of one database to another database.

This module has no `from __future__ import annotations`: with it, the annotations would be texts, and SQLAlchemy would
compile each of these texts at the start of every command that reads the database.
"""

from datetime import datetime

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from executor.database.tables.base import Base


class Move(Base):
    """A move of this database's rows to or from another database. Only `moves` and `table_copy` write this table."""

    __tablename__ = "moves"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)  #: the same in both databases
    direction: Mapped[str] = mapped_column(String(4))  #: a `MoveDirection`; `to` seals this database
    url: Mapped[str] = mapped_column(Text)  #: the URL of the other database, without a password
    who: Mapped[str] = mapped_column(String(100))  #: the operator, as in the audit
    started_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]
