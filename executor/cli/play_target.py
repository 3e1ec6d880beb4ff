"""Finds the VM on which `smith play` runs an action: by its service, its VMID or its name.

The playbook of the action gets the VM as the extra variable `vm`, a dictionary. Its keys are called members.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executor.cli.arguments import CommandFailed, UnusableArgument
from executor.cli.mapping_changes import find_mapping
from executor.cli.service_lock import describe_running_job
from executor.cli.store import open_database
from executor.database import queries
from executor.database.engine import read_only_session
from executor.model import GuestKind, JobStatus
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.proxmox.rows import VmRow, fill_in_vm_row
from executor.runs.actions import Action
from executor.settings.settings import Settings

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine

    from executor.database.tables.mappings import Mapping

#: If the operator sets one of these members of `vm` (with --vars or -e), it must equal the value of the selected VM.
#: The members `node` and `kind` also identify the VM, but they are not compared.
COMPARED_MEMBERS = ("service_id", "vmid", "name", "cluster")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The VM on which an action is run."""

    identity: dict[str, Any]  #: the members of `vm` that identify the VM; empty if no option selects the VM
    mapping: Mapping | None = None  #: the mapping in which the result is stored; None: no mapping is changed


def find_target(  # noqa: PLR0913 (three options select the VM)
    engine: Engine | None,
    settings: Settings,
    action: Action,
    *,
    service: str | None,
    vmid: int | None,
    name: str | None,
) -> Target:
    """Return the VM that one of the options selects. `engine` is None if there is no database.

    If no option is given, the operator sets, with --vars or -e, the members of `vm` that identify the VM.
    The VM of the action `create` does not exist yet, so the options --vmid and --name only set members of `vm`.
    """
    if service is not None:
        mapping = _find_service_mapping(engine, settings, service)
        values = {member: getattr(mapping, member) for member in (*COMPARED_MEMBERS, "node")}
        identity = {member: value for member, value in values.items() if value}
        return Target(identity=identity | _kind_member(mapping.kind), mapping=mapping)
    members_from_options = {
        member: value for member, value in {"vmid": vmid, "name": name}.items() if value is not None
    }
    if action.name == "create" or not members_from_options:
        return Target(identity=members_from_options)
    reader = ProxmoxReader(ProxmoxConnection.from_settings(settings))
    return Target(identity=read_identity(reader, _find_vm_row(reader.vms(), vmid, name)))


def _find_service_mapping(engine: Engine | None, settings: Settings, reference: str) -> Mapping:
    """Return the mapping that matches the reference: a VMID, a VM's name, or the beginning of a service's id.

    Raises UnusableArgument unless exactly one mapping matches.
    """
    if engine is None:
        # `open_database` raises DatabaseError with the reason why there is no database. It raises nothing if an agent
        # has created the database since this command started.
        with open_database(settings):
            raise CommandFailed("an agent has created the database just now: call the command again")
    with read_only_session(engine) as session:
        return find_mapping(session, reference.strip())


def refuse_while_job_runs(engine: Engine, service_id: str) -> None:
    """Raise CommandFailed if a job of the service is running.

    If a job starts after this check, the command fails later, when it locks the service for the run.
    """
    with read_only_session(engine) as session:
        jobs = queries.list_jobs(session, statuses=[JobStatus.PROCESSING], service_ids=[service_id], limit=1)
    if jobs:
        raise CommandFailed(describe_running_job(jobs[0]))


def _find_vm_row(rows: list[VmRow], vmid: int | None, name: str | None) -> VmRow:
    """Return the row of the VM with this VMID or with this name. `rows` is Proxmox's list of VMs.

    Raises UnusableArgument unless exactly one VM matches.
    """
    if vmid is not None:
        return find_row_by_vmid(rows, vmid)
    matches = [row for row in rows if row.name == name and not row.is_template]
    if len(matches) > 1:
        vmids = ", ".join(str(row.vmid) for row in matches)
        raise UnusableArgument(f"more than one VM is called {name}: {vmids}. Use --vmid")
    if not matches:
        raise UnusableArgument(
            f"the agent's token sees no VM {name} in Proxmox. `smith mappings list` shows the VMs of the services"
        )
    return matches[0]


def find_row_by_vmid(rows: list[VmRow], vmid: int) -> VmRow:
    """Return the row of the VM with this VMID. Raises UnusableArgument if Proxmox's list of VMs has no such row."""
    for row in rows:
        if row.vmid == vmid:
            return row
    raise UnusableArgument(
        f"the agent's token sees no VM {vmid} in Proxmox. `smith mappings list` shows the VMs of the services"
    )


def read_identity(reader: ProxmoxReader, vm_row: VmRow) -> dict[str, Any]:
    """Read the VM's configuration from Proxmox, and return the members of `vm` that identify the VM.

    The service's id comes from the marker, a line in the VM's description. Raises UnusableArgument if the VM has no
    marker.
    """
    config = reader.vm_config(vm_row.node, vm_row.vmid, kind=vm_row.kind)
    # Take the name from the configuration, because Proxmox's list of VMs may lack it.
    vm_row = fill_in_vm_row(vm_row, config)
    service_id = reader.service_id_in_marker(config)
    if not service_id:
        text = f"VM {vm_row.vmid} ({vm_row.name}) has no marker of Agent Smith, so no action may change it"
        raise UnusableArgument(text)
    identity = {"service_id": service_id, "vmid": vm_row.vmid, "name": vm_row.name, "node": vm_row.node}
    return identity | _kind_member(vm_row.kind)


def _kind_member(kind: str) -> dict[str, Any]:
    """Return the member `kind`, or nothing for a QEMU VM: without this member, the roles assume QEMU."""
    return {"kind": kind} if kind != GuestKind.QEMU else {}
