"""Defines the tables of mappings, of the secrets that services use, and of drift checks.

This module has no `from __future__ import annotations`: with it, the annotations would be texts, and SQLAlchemy would
compile each of these texts at the start of every command that reads the database.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from executor.database.tables.base import Base
from executor.model import GuestKind, MappingState


class Mapping(Base):
    """A mapping of a service to its VM. The agent prunes (removes) the rows of mappings that were deleted long ago.

    Only modules of `executor.database` write this table. `mappings` inserts, changes and prunes rows.
    `mapping_transfer` imports rows. `usage` changes `tenant_id` and the columns that contain what the VM uses.
    `volumes_left` clears a `note` about volumes that no longer exist. `erasure` deletes the rows of a service whose
    data is erased.
    """

    __tablename__ = "mappings"

    id: Mapped[int] = mapped_column(primary_key=True)
    service_id: Mapped[str] = mapped_column(String(36))
    cluster: Mapped[str] = mapped_column(String(100))
    vmid: Mapped[int]
    node: Mapped[str | None] = mapped_column(String(100))  #: the Proxmox node
    kind: Mapped[str] = mapped_column(String(10), default=GuestKind.QEMU, server_default=GuestKind.QEMU)
    name: Mapped[str] = mapped_column(String(100))
    marker: Mapped[str] = mapped_column(String(100))  #: the line in the VM's description that names the service
    mac_address: Mapped[str | None] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(20), default=MappingState.RESERVED)
    #: The reason for the state. If volumes of a deleted VM may still exist in Proxmox: `VOLUMES_LEFT: ` and their ids.
    note: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]  #: when the state became deleted
    delete_at: Mapped[datetime | None]  #: the earliest time at which a VM that is pending deletion may be deleted
    tenant_id: Mapped[str | None] = mapped_column(String(36))  #: the participant in FulcrumCore that uses the service
    #: This column and the following columns contain what the VM uses. They are 0 before the create job ends, and stay
    #: 0 if the job has certainly made no VM. For an adopted VM, they are 0 until its sizes are known.
    cores: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    memory_mib: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    disk_gib: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    snapshots: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  #: the number of snapshots
    backups: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  #: the number of backups


class SecretReference(Base):
    """The service that may use one secret of FulcrumCore's vault. Only `secret_references` writes this table."""

    __tablename__ = "secret_references"

    #: The SHA-256 of the reference to the secret, in hexadecimal digits.
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    service_id: Mapped[str] = mapped_column(String(36))
    bound_at: Mapped[datetime]  #: since when only this service may use the secret


class DriftCheck(Base):
    """The findings of a cluster's last conclusive drift check. Only the module `drift_checks` writes this table.

    A finding is a difference between the mappings, Proxmox and FulcrumCore. A check is conclusive unless Proxmox's list
    of VMs or FulcrumCore's list of services may be incomplete.
    """

    __tablename__ = "drift_checks"

    cluster: Mapped[str] = mapped_column(String(100), primary_key=True)
    concluded_at: Mapped[datetime]  #: when the findings were stored
    findings: Mapped[list[dict[str, Any]]] = mapped_column(JSON(none_as_null=True))
