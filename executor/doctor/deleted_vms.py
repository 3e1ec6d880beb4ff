"""Checks for remains of deletions: guests whose deletion was interrupted, and volumes of deleted VMs."""

from __future__ import annotations

from collections.abc import Iterator

from executor.doctor.checks import Area, CheckResult, ResultFactory, command_line
from executor.doctor.database_reads import read_database
from executor.doctor.proxmox_context import ProxmoxContext
from executor.drift.facts import VolumesLeft
from executor.drift.rows import read_volumes_left
from executor.drift.volumes import volumes_that_may_exist
from executor.errors import DatabaseError
from executor.model import GuestKind
from executor.settings.settings import Settings

_RESULT_FACTORY = ResultFactory(Area.PROXMOX)
#: The lock that Proxmox sets near the end of a deletion. If the deletion is interrupted while this lock is set, the
#: guest's configuration stays, and contains only this lock.
DESTROYED_LOCK = "destroyed"


def check_deleted_vms(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Warn of guests whose deletion was interrupted, and of volumes of deleted VMs that may still exist."""
    warnings = [*_check_partly_deleted_guests(context), *_check_volumes_left(context)]
    yield from warnings or [_RESULT_FACTORY.ok("deleted vms")]


def _check_partly_deleted_guests(context: ProxmoxContext) -> Iterator[CheckResult]:
    for row in context.guests:
        if row.lock == DESTROYED_LOCK:
            tool, kind = ("pct", "container") if row.kind == GuestKind.LXC else ("qm", "VM")
            problem = f"a deletion of {kind} {row.vmid} on {row.node} was interrupted"
            text = f"{problem}: the guest's configuration contains only a lock"
            command = f"{tool} unlock {row.vmid} && {tool} destroy {row.vmid}"
            remedy = f"on {row.node}, unless a deletion of this guest is running: {command}"
            yield _RESULT_FACTORY.warn("deleted vms", text, remedy)


def _check_volumes_left(context: ProxmoxContext) -> Iterator[CheckResult]:
    for volumes_left_after_deletion in _read_volumes_left_after_deletion(context.settings):
        # Omits the volumes that Proxmox no longer lists. If Proxmox's list cannot be read, omits no volume.
        remaining = volumes_that_may_exist(context.reader, volumes_left_after_deletion)
        if remaining.volumes:
            names = ", ".join(remaining.volumes)
            text = f"VM {remaining.mapping.vmid} is deleted, but these volumes may still exist: {names}"
            commands = [
                f"on {remaining.mapping.node or 'a node'}: {command_line('pvesm', 'free', volume)}"
                for volume in remaining.volumes
            ]
            yield _RESULT_FACTORY.warn(
                "deleted vms", f"{text}; no new VM gets this VMID until these volumes are removed", *commands
            )


def _read_volumes_left_after_deletion(settings: Settings) -> tuple[VolumesLeft, ...]:
    """Return, for each deleted VM, the volumes that still existed after the deletion, according to the database.

    `smith_cluster` is the name of this Proxmox cluster in the database. If the database cannot be read, return no
    volumes: the check of the database reports this error.
    """
    try:
        return read_database(
            settings, lambda session: read_volumes_left(session, settings.smith_cluster), if_no_database_file=()
        )
    except DatabaseError:
        return ()
