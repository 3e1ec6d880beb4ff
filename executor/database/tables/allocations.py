"""Defines the tables of what agents have allocated to runs on Proxmox nodes and storages.

This module has no `from __future__ import annotations`: with it, the annotations would be texts, and SQLAlchemy would
compile each of these texts at the start of every command that reads the database.
"""

from datetime import datetime

from sqlalchemy import BigInteger, Boolean, String
from sqlalchemy.orm import Mapped, mapped_column

from executor.database.tables.base import Base


class Allocation(Base):
    """What an agent has allocated to the run for one VM. Other agents read it. Only `allocations` writes this table."""

    __tablename__ = "allocations"

    cluster: Mapped[str] = mapped_column(String(100), primary_key=True)
    vmid: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    boot_id: Mapped[str] = mapped_column(String(64))  #: the agent process
    node: Mapped[str] = mapped_column(String(100))  #: the Proxmox node
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    cores: Mapped[int]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    clone_target: Mapped[str | None] = mapped_column(String(200))  #: set when the clone of a create has started
    is_cloning: Mapped[bool] = mapped_column(Boolean)


class CloneTarget(Base):
    """A storage on which clones run, and how many may run there. Only `allocations` writes this table."""

    __tablename__ = "clone_targets"

    cluster: Mapped[str] = mapped_column(String(100), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    max_clones: Mapped[int]
    successes: Mapped[int]  #: the number of successful clones since the last change of `max_clones`
    highest: Mapped[int]  #: the highest SMITH_CLONES_PER_STORAGE of an agent that has used the target
    used_at: Mapped[datetime]  #: when a clone was last requested there
