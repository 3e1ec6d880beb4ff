"""Runs all checks of Proxmox, and defines two of them: the quorum and the VMID range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from executor.database import free_vmids
from executor.doctor.checks import Area, CheckResult, ResultFactory
from executor.doctor.database_reads import read_database
from executor.doctor.deleted_vms import check_deleted_vms
from executor.doctor.proxmox_connection import check_connection, explain_failure
from executor.doctor.proxmox_context import ProxmoxContext
from executor.doctor.proxmox_placement import check_placement
from executor.doctor.proxmox_places import check_bridges, check_nodes, check_pool
from executor.doctor.proxmox_privileges import check_privileges
from executor.doctor.proxmox_storages import check_storages
from executor.doctor.proxmox_tags import check_tags
from executor.doctor.proxmox_templates import check_os_templates, check_templates
from executor.errors import DatabaseError, JobError
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.settings.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_RESULT_FACTORY = ResultFactory(Area.PROXMOX)
QUORUM_REMEDY = "start the missing nodes, or repair the network of the cluster; on a node: pvecm status"
#: The remedy that enlarges the VMID range adds at least this number of VMIDs.
MIN_ADDED_VMIDS = 100
#: The check warns when the free share of the VMID range is smaller than this.
MIN_FREE_VMID_SHARE = 0.05


def check_proxmox(settings: Settings) -> Iterator[CheckResult]:
    """Check Proxmox. If the first request fails, no other check runs.

    If a later request fails, only the check that sent this request fails. The other checks still run.
    """
    context = ProxmoxContext(settings, ProxmoxReader(ProxmoxConnection.from_settings(settings)))
    try:
        version = context.reader.version()
    except JobError as error:
        yield explain_failure(error, settings)
        return
    yield from check_connection(version, settings)
    for name, check in (
        ("quorum", _check_quorum),
        ("privileges", check_privileges),
        ("nodes", check_nodes),
        ("templates", check_templates),
        ("placement", check_placement),
        ("os templates", check_os_templates),  # the files from which containers are created
        ("storage", check_storages),
        ("bridge", check_bridges),
        ("pool", check_pool),
        ("vmid range", _check_vmid_range),
        ("tags", check_tags),
        ("deleted vms", check_deleted_vms),  # interrupted deletions, and volumes of deleted VMs
    ):
        yield from _run_check(name, check, context)


def _run_check(
    name: str, check: Callable[[ProxmoxContext], Iterator[CheckResult]], context: ProxmoxContext
) -> Iterator[CheckResult]:
    """Run one check. If Proxmox returns an error, the result is a failed check."""
    try:
        yield from check(context)
    except JobError as error:
        yield _RESULT_FACTORY.fail(name, str(error))


def _check_quorum(context: ProxmoxContext) -> Iterator[CheckResult]:
    if context.reader.is_quorate():
        yield _RESULT_FACTORY.ok("quorum")
    else:
        yield _RESULT_FACTORY.fail("quorum", "the cluster has no quorum: no VM can be changed", QUORUM_REMEDY)


def _check_vmid_range(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that the range has free VMIDs. A free VMID belongs to no guest and no service, and is not in quarantine.

    After the deletion of a VM, its VMID is in quarantine for SMITH_VMID_QUARANTINE_S: it is not used for another VM.
    """
    lowest, highest = context.settings.proxmox_vmid_min, context.settings.proxmox_vmid_max
    vmid_count = highest - lowest + 1
    guest_vmids = {row.vmid for row in context.guests if lowest <= row.vmid <= highest}
    unavailable_vmids = _unavailable_vmids(context.settings)
    free_count = vmid_count - len(guest_vmids | unavailable_vmids)
    text = f"{free_count} of {vmid_count} VMIDs between {lowest} and {highest} are free"
    text += f"; {len(unavailable_vmids)} belong to services or are in quarantine" if unavailable_vmids else ""
    text += "; guests that the token is not allowed to see may use some of them" if free_count > 0 else ""
    remedies = [f"PROXMOX_VMID_MAX={highest + max(vmid_count, MIN_ADDED_VMIDS)}"]
    if unavailable_vmids - guest_vmids:
        remedies.append("SMITH_VMID_QUARANTINE_S=<fewer seconds>, if the VMIDs of deleted VMs may be used again sooner")
    if free_count <= 0:
        yield _RESULT_FACTORY.fail("vmid range", text, *remedies)
    elif free_count < vmid_count * MIN_FREE_VMID_SHARE:
        yield _RESULT_FACTORY.warn("vmid range", text, *remedies)
    else:
        yield _RESULT_FACTORY.ok("vmid range", text)


def _unavailable_vmids(settings: Settings) -> set[int]:
    """Return the VMIDs of services and the VMIDs in quarantine.

    Return no VMIDs if the SQLite database does not exist yet (`if_no_database_file`), or if the database cannot be
    read. The check of the database reports a database that cannot be read.
    """
    cluster_and_vmid_range = (settings.smith_cluster, settings.proxmox_vmid_min, settings.proxmox_vmid_max)
    quarantine_s = settings.smith_vmid_quarantine_s

    def read_unavailable_vmids(session: Session) -> set[int]:
        return free_vmids.unavailable_vmids(session, cluster_and_vmid_range, quarantine_s=quarantine_s)

    try:
        return read_database(settings, read_unavailable_vmids, if_no_database_file=set())
    except DatabaseError:
        return set()
