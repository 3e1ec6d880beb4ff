"""Defines the table `moves`. Each row records one move of this database's contents to or from another database.

This module has no `from __future__ import annotations`: with it, the annotations would be texts, and SQLAlchemy would
compile each of these texts at the start of every command that reads the database.
"""

from datetime import datetime

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from executor.database.tables.base import Base


class Move(Base):
    """A move to or from another database. Only the modules `moves` and `table_copy` write this table.

    A move to another database seals this database: triggers refuse every change of the other tables.
    """

    __tablename__ = "moves"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)  #: the same in both databases
    direction: Mapped[str] = mapped_column(String(4))  #: a `MoveDirection`: `to` or `from` the other database
    url: Mapped[str] = mapped_column(Text)  #: the URL of the other database, without a password
    who: Mapped[str] = mapped_column(String(100))  #: the operator's user name in the operating system
    started_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]
