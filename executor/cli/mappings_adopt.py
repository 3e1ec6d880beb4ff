"""`smith mappings adopt`: maps an existing VM to a service.

A service's marker is a line in the VM's description that contains the service's id.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from executor.cli.adoption import Adoption, VmToAdopt
from executor.cli.arguments import AsJson, CommandFailed, UnusableReference, confirm
from executor.cli.clients import Clients, connect
from executor.cli.help_text import examples
from executor.cli.output import show_json, show_text
from executor.cli.store import open_database
from executor.cli.tables import show_fields
from executor.errors import FulcrumAuthFailing, FulcrumRefused
from executor.proxmox.rows import with_configuration
from executor.shared.marker import markers_in

#: FulcrumCore's status of a deleted service. FulcrumCore sends no more jobs for such a service.
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

    The VM must not be a template. It must have the service's marker, or no marker if --set-marker is used.
    The result of the service's next job contains the VM's id, which FulcrumCore stores as the service's instance id. To
    send the VM's id now, repeat create in FulcrumCore: the create job uses this VM and creates no other VM.
    """
    clients = connect()
    service_id = _canonical_service_id(clients, service)
    vm = _find_vm(clients, vmid)
    has_marker = _check_marker(vm, service_id, set_marker=set_marker)
    with open_database(clients.settings) as engine:
        adoption = Adoption(
            engine=engine,
            settings=clients.settings,
            service_id=service_id,
            vm=vm,
            has_marker=has_marker,
            playbook_output=sys.stderr if as_json else sys.stdout,
        )
        # `check_mappings` raises CommandFailed if the adoption is not possible.
        is_mapped_to_this_vm = adoption.check_mappings()
        if not dry_run:
            marker_clause = "" if has_marker else ", and write its marker into the VM"
            confirm(f"Map VM {vm.vmid} ({vm.name} on {vm.node}) to service {service_id}{marker_clause}?", yes=yes)
            adoption.execute(reason, is_mapped_to_this_vm=is_mapped_to_this_vm)
    _show(adoption, dry_run=dry_run, as_json=as_json)


def _canonical_service_id(clients: Clients, service_id: str) -> str:
    """Return the service's id in FulcrumCore's spelling.

    Raises UnusableReference unless the service exists and belongs to this agent, and CommandFailed when FulcrumCore has
    deleted the service.
    """
    try:
        fulcrum_service = clients.fulcrum.get_service(service_id.strip())
    except FulcrumAuthFailing:
        # FulcrumCore answers 403 both for an unknown service and for a refused token. If it refuses the token,
        # `get_self` raises FulcrumAuthFailing. If it accepts the token, the service is unknown.
        clients.fulcrum.get_self()
        raise UnusableReference(f"FulcrumCore knows no service {service_id}") from None
    except FulcrumRefused as error:
        raise UnusableReference(f"{service_id} is not the id of a service: {error}") from None
    if fulcrum_service.agent_id != clients.agent_id:
        raise UnusableReference(f"service {service_id} belongs to another agent")
    if fulcrum_service.status == DELETED_STATUS:
        raise CommandFailed(f"service {service_id} is {DELETED_STATUS} in FulcrumCore, which sends no more jobs for it")
    return fulcrum_service.id


def _find_vm(clients: Clients, vmid: int) -> VmToAdopt:
    """Return the VM with this VMID.

    Raises UnusableReference when Proxmox does not list the VM for our API token, or when the VM is a template.
    """
    vm_row = next((row for row in clients.proxmox.vms() if row.vmid == vmid), None)
    if vm_row is None:
        raise UnusableReference(f"the token sees no VM {vmid}")
    config = clients.proxmox.vm_config(vm_row.node, vmid, kind=vm_row.kind)
    vm_row = with_configuration(vm_row, config)  # the facts of the list may be missing or out of date
    if vm_row.is_template:
        raise UnusableReference(f"{vmid} ({vm_row.name}) is a template, which no service can have")
    description = str(config.get("description") or "")
    return VmToAdopt(
        vmid=vmid,
        node=vm_row.node,
        kind=vm_row.kind,
        name=vm_row.name,
        tags=vm_row.tags,
        description=description,
        marked_service_ids=frozenset(markers_in(description)),
    )


def _check_marker(vm: VmToAdopt, service_id: str, *, set_marker: bool) -> bool:
    """Return True if the VM has the service's marker, and False if it has no marker and `set_marker` is True.

    Raises UnusableReference if the VM has another service's marker, or if it has no marker and `set_marker` is False.
    """
    if vm.marked_service_ids == {service_id}:
        return True
    if vm.marked_service_ids:
        raise UnusableReference(
            f"VM {vm.vmid} ({vm.name}) has the marker of {' and '.join(sorted(vm.marked_service_ids))}: remove it first"
        )
    if not set_marker:
        raise UnusableReference(f"VM {vm.vmid} ({vm.name}) has no marker: --set-marker writes it")
    return False


def _show(adoption: Adoption, *, dry_run: bool, as_json: bool) -> None:
    vm, has_marker = adoption.vm, adoption.has_marker
    fields = {"service_id": adoption.service_id, "vmid": vm.vmid, "name": vm.name, "node": vm.node}
    if as_json:
        show_json(fields | {"adopted": not dry_run, "marker_written": not (has_marker or dry_run)})
        return
    marker_state = "present"
    if not has_marker:
        marker_state = "to be written" if dry_run else "written"
    show_fields(fields | {"marker": marker_state})
    if dry_run:
        show_text("nothing was changed")
    else:
        show_text("mapped; repeat create in FulcrumCore if the service has no instance id")
