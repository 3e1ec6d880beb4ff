"""Finds the archives (backups) at Proxmox that belong to a service. No archive is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from executor.proxmox.client import ProxmoxReader
from executor.proxmox.rows import ArchiveRow, StorageRow
from executor.shared.marker import marker_values_in

if TYPE_CHECKING:  # Not imported at run time, because the import would load SQLAlchemy's ORM, which is slow.
    from executor.database.tables.mappings import Mapping


def list_archives(proxmox: ProxmoxReader) -> list[ArchiveRow]:
    """Return the archives that the API token may see, from all storages that accept backups.

    Raises JobError if a request to Proxmox fails.
    """
    archives = {
        archive.volume: archive
        for storage in _storages_to_read(proxmox.storages())
        for archive in proxmox.archives(storage.node, storage.name)
    }
    return [archives[volume] for volume in sorted(archives)]


def _storages_to_read(storages: Iterable[StorageRow]) -> Iterator[StorageRow]:
    """Yield each available storage for backups.

    A shared storage is yielded for one node only, because all nodes list the same archives on it.
    """
    names_of_yielded_shared_storages = set()
    for storage in storages:
        if (
            "backup" not in storage.content
            or not storage.is_available
            or storage.name in names_of_yielded_shared_storages
        ):
            continue
        if storage.is_shared:
            names_of_yielded_shared_storages.add(storage.name)
        yield storage


def archives_of_service(
    archives: Sequence[ArchiveRow], service_id: str, mappings_of_service: Sequence[Mapping]
) -> list[dict[str, Any]]:
    """Return one row for each archive of the service, with the reason why the archive belongs to the service.

    An archive belongs to the service if the archive's notes name the service, or if one of the service's mappings had
    the archive's VMID when the archive was created.
    """
    rows = []
    for archive in archives:
        if service_id in marker_values_in(archive.notes):
            reason = "the archive's notes name the service"
        elif any(_had_vmid_when_archive_was_created(mapping, archive) for mapping in mappings_of_service):
            reason = "the service had this VMID when the archive was created"
        else:
            continue
        created_at = datetime.fromtimestamp(archive.created_at_s, UTC)
        rows.append({"volume": archive.volume, "vmid": archive.vmid, "created_at": created_at, "why": reason})
    return rows


def _had_vmid_when_archive_was_created(mapping: Mapping, archive: ArchiveRow) -> bool:
    archive_created_at = datetime.fromtimestamp(archive.created_at_s, UTC)
    is_mapping_older = mapping.created_at <= archive_created_at
    return (
        mapping.vmid == archive.vmid
        and is_mapping_older
        and (mapping.deleted_at is None or archive_created_at <= mapping.deleted_at)
    )
