"""Defines the tables of the memory and cores that runs need for their VMs, and of the limits of clones per storage.

This module has no `from __future__ import annotations`: with it, the annotations would be texts, and SQLAlchemy would
compile each of these texts at the start of every command that reads the database.
"""

from datetime import datetime

from sqlalchemy import BigInteger, Boolean, String
from sqlalchemy.orm import Mapped, mapped_column

from executor.database.tables.base import Base


class Allocation(Base):
    """The memory and cores of a Proxmox node that a run needs for its VM, and whether Proxmox is cloning this VM.

    Only the module `database/allocations.py` writes this table.
    """

    __tablename__ = "allocations"

    cluster: Mapped[str] = mapped_column(String(100), primary_key=True)
    vmid: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    boot_id: Mapped[str] = mapped_column(String(64))  #: random id of the agent process (not of a boot) that wrote it
    node: Mapped[str] = mapped_column(String(100))  #: the Proxmox node
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    cores: Mapped[int]
    started_at: Mapped[datetime]
    #: When the run ended; NULL until then. If another agent process's list of Proxmox's VMs is older than
    #: `ended_at`, that process counts `memory_bytes` and `cores` as used: the list may lack them.
    ended_at: Mapped[datetime | None]
    #: `CloneTarget.name` of the storage on which the VM is or was cloned; NULL if the run has started no clone.
    clone_target: Mapped[str | None] = mapped_column(String(200))
    is_cloning: Mapped[bool] = mapped_column(Boolean)


class CloneTarget(Base):
    """A storage on which VMs are cloned, and its limit of clones. Only `database/allocations.py` writes this table."""

    __tablename__ = "clone_targets"

    cluster: Mapped[str] = mapped_column(String(100), primary_key=True)
    #: The name of a shared storage, or `<storage>@<Proxmox node>` for a local storage.
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    max_clones: Mapped[int]  #: how many clones may run on the storage at the same time
    successes: Mapped[int]  #: the number of successful clones since the last change of `max_clones`
    #: The highest SMITH_CLONES_PER_STORAGE of all agent processes that have used the storage. An agent process with a
    #: higher setting stores its setting here and in `max_clones`.
    highest: Mapped[int]
    used_at: Mapped[datetime]  #: when an agent process last requested a clone on this storage
