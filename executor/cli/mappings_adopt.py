"""`smith mappings adopt`: maps an existing VM to a service."""

from __future__ import annotations

from typing import Annotated

import typer

from executor.cli.adoption import AdoptedVm, Adoption
from executor.cli.arguments import AsJson, CommandFailed, UnknownReference, confirm
from executor.cli.clients import Clients, connect
from executor.cli.help_text import examples
from executor.cli.output import show_json, show_text
from executor.cli.store import open_database
from executor.cli.tables import show_fields
from executor.errors import FulcrumAuthFailing, FulcrumRefused
from executor.proxmox.client import MARKER_LINE

#: FulcrumCore's status of a deleted service; FulcrumCore sends no more jobs for such a service.
DELETED_STATUS = "Deleted"


@examples(
    "smith mappings adopt --service 8f2c0a11-… --vmid 100123 --dry-run",
    "smith mappings adopt --service 8f2c0a11-… --vmid 100123 --yes",
    "smith mappings adopt --service 8f2c0a11-… --vmid 4711 --set-marker    a VM without a marker",
)
def adopt(  # noqa: PLR0913, PLR0917 (each parameter is an option; typer passes all by name)
    service: Annotated[str, typer.Option("--service", metavar="ID", help="The service's whole id.")],
    vmid: Annotated[int, typer.Option("--vmid", metavar="N", min=100, max=999_999_999, help="The VM's id.")],
    set_marker: Annotated[
        bool, typer.Option("--set-marker", help="Write the service's marker into the VM's description.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Stored in the audit.")] = "",
    as_json: AsJson = False,
) -> None:
    """Map an existing VM to a service.

    The VM must not be a template, and must have the service's marker and no other.
    FulcrumCore gets the VM's id with the result of the service's next job: repeat create in FulcrumCore, which then
    adopts the VM.
    """
    clients = connect()
    service = _find_service_id(clients, service)
    vm = _find_vm(clients, vmid)
    is_marked = _check_marker(vm, service, set_marker=set_marker)
    with open_database(clients.settings) as engine:
        adoption = Adoption(
            engine=engine,
            settings=clients.settings,
            service_id=service,
            vm=vm,
            is_marked=is_marked,
            output_on_stderr=as_json,
        )
        is_mapped = adoption.check_mappings()
        if not dry_run:
            marking = "" if is_marked else ", and write its marker into the VM"
            confirm(f"Map VM {vm.vmid} ({vm.name} on {vm.node}) to service {service}{marking}?", yes=yes)
            adoption.execute(reason, is_mapped=is_mapped)
    _show(adoption, dry_run=dry_run, as_json=as_json)


def _find_service_id(clients: Clients, service_id: str) -> str:
    """Return the service's id in FulcrumCore's spelling.

    Raises UnknownReference unless the service exists and belongs to this agent, and CommandFailed when FulcrumCore has
    deleted the service.
    """
    try:
        found = clients.fulcrum.get_service(service_id.strip())
    except FulcrumAuthFailing:
        # FulcrumCore answers 403 both for an unknown service and for a refused token. If FulcrumCore refuses the token,
        # this call raises FulcrumAuthFailing, too.
        clients.fulcrum.get_self()
        raise UnknownReference(f"FulcrumCore knows no service {service_id}") from None
    except FulcrumRefused as error:
        raise UnknownReference(f"{service_id} names no service: {error}") from None
    if found.agent_id != clients.agent_id:
        raise UnknownReference(f"service {service_id} belongs to another agent")
    if found.status == DELETED_STATUS:
        raise CommandFailed(f"service {service_id} is {DELETED_STATUS} in FulcrumCore, which sends no more jobs for it")
    return found.id


def _find_vm(clients: Clients, vmid: int) -> AdoptedVm:
    """Return the VM with this VMID.

    Raises UnknownReference when Proxmox does not list the VM for our API token, or when the VM is a template.
    """
    row = next((row for row in clients.proxmox.vms() if row.vmid == vmid), None)
    if row is None:
        raise UnknownReference(f"the token sees no VM {vmid}")
    if row.is_template:
        raise UnknownReference(f"{vmid} ({row.name}) is a template, which no service can have")
    config = clients.proxmox.vm_config(row.node, vmid, kind=row.kind)
    description = str(config.get("description") or "")
    return AdoptedVm(
        vmid=vmid,
        node=row.node,
        kind=row.kind,
        name=str(config.get("name") or config.get("hostname") or row.name),
        tags=row.tags,
        description=description,
        markers=frozenset(uid.lower() for uid in MARKER_LINE.findall(description)),
    )


def _check_marker(vm: AdoptedVm, service_id: str, *, set_marker: bool) -> bool:
    """Return True if the VM has the service's marker, and False if it has no marker and `set_marker` is True.

    Raises UnknownReference if the VM has another service's marker, or if it has no marker and `set_marker` is False.
    """
    if vm.markers == {service_id}:
        return True
    if vm.markers:
        raise UnknownReference(
            f"VM {vm.vmid} ({vm.name}) has the marker of {' and '.join(sorted(vm.markers))}: remove it first"
        )
    if not set_marker:
        raise UnknownReference(f"VM {vm.vmid} ({vm.name}) has no marker: --set-marker writes it")
    return False


def _show(adoption: Adoption, *, dry_run: bool, as_json: bool) -> None:
    vm, is_marked = adoption.vm, adoption.is_marked
    fields = {"service_id": adoption.service_id, "vmid": vm.vmid, "name": vm.name, "node": vm.node}
    if as_json:
        show_json(fields | {"adopted": not dry_run, "marker_written": not (is_marked or dry_run)})
        return
    show_fields(fields | {"marker": "present" if is_marked else "to be written" if dry_run else "written"})
    show_text(
        "nothing was changed" if dry_run else "mapped; repeat create in FulcrumCore if the service has no instance id"
    )
