"""`smith mappings adopt`: maps an existing VM to a service.

A service's marker is a line in the VM's description that contains the service's id.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from executor.cli import mappings_adopt_many
from executor.cli.adoption import Adoption
from executor.cli.adoption_checks import check_service_and_return_id, check_service_marker, find_vm_to_adopt
from executor.cli.arguments import AsJson, confirm
from executor.cli.clients import create_fulcrum_and_proxmox_clients
from executor.cli.help_text import examples
from executor.cli.output import show_json, show_text
from executor.cli.store import open_database
from executor.cli.tables import show_fields


@examples(
    "smith mappings adopt --service 8f2c0a11-… --vmid 100123 --dry-run",
    "smith mappings adopt --service 8f2c0a11-… --vmid 100123 --yes",
    "smith mappings adopt --service 8f2c0a11-… --vmid 4711 --set-marker    a VM without a marker",
    "smith mappings adopt --from old-agent.db --dry-run                     what would be done with each row",
)
def adopt(  # noqa: PLR0913, PLR0917 (each parameter is an option; typer passes all by name)
    service: Annotated[
        str, typer.Option("--service", metavar="ID", help="The full id of the service in FulcrumCore.")
    ] = "",
    vmid: Annotated[
        int | None, typer.Option("--vmid", metavar="N", min=100, max=999_999_999, help="The VMID of the service's VM.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="A file with many services and VMIDs: CSV, JSON, or the SQLite file of the PHP agent, an earlier "
            "agent for FulcrumCore.",
        ),
    ] = None,
    may_write_marker: Annotated[
        bool, typer.Option("--set-marker", help="Write the service's marker into the VM's description.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Stored in the audit log (`smith audit list`).")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Map an existing VM to a service.

    The VM must not be a template, and must have the service's marker. With --set-marker, a missing marker is written.
    The report of the service's next job sends the service's instance id (it contains the VMID) to FulcrumCore. To send
    the id now, request the action create in FulcrumCore again: the job uses this VM, and creates no other VM.

    With --from, each row of the file names a service and a VMID. Missing markers are written. A row is left
    out if its VM is missing, or if FulcrumCore has deleted the service or does not know it. Rows that name several
    existing VMs for one service, or several services for one VM, are refused. A refused row does not
    stop the command: it continues with the next row. The command can be called again with the same file.
    """
    if file is not None:
        if service or vmid is not None:
            raise typer.BadParameter("--from cannot be combined with --service or --vmid")
        mappings_adopt_many.adopt(
            create_fulcrum_and_proxmox_clients(), file, reason, dry_run=dry_run, yes=yes, as_json=as_json
        )
        return
    if not service or vmid is None:
        raise typer.BadParameter("name a VM with --service and --vmid, or a file with --from")
    clients = create_fulcrum_and_proxmox_clients()
    service_id = check_service_and_return_id(clients, service)
    vm = find_vm_to_adopt(clients, clients.proxmox.vms(), vmid)
    # Raises an error if the VM cannot be adopted. Otherwise returns whether the VM has the service's marker already.
    has_marker = check_service_marker(vm, service_id, may_write_marker=may_write_marker)
    with open_database(clients.settings) as engine:
        adoption = Adoption(
            engine=engine,
            settings=clients.settings,
            service_id=service_id,
            vm=vm,
            has_marker=has_marker,
            playbook_output=sys.stderr if as_json else sys.stdout,  # for the playbook that writes the marker
        )
        # Raises an error if the service is mapped to another existing VM, if the VM is mapped to another service, or if
        # a playbook runs for the service. Otherwise returns whether the service is mapped to this VM already.
        is_service_mapped_to_vm = adoption.check_mappings()
        if not dry_run:
            marker_clause = "" if has_marker else ", and write the service's marker into the VM's description"
            confirm(f"Map VM {vm.vmid} ({vm.name} on {vm.node}) to service {service_id}{marker_clause}?", yes=yes)
            adoption.execute(reason, is_service_mapped_to_vm=is_service_mapped_to_vm)
    _show_adoption(adoption, dry_run=dry_run, as_json=as_json)


def _show_adoption(adoption: Adoption, *, dry_run: bool, as_json: bool) -> None:
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
        show_text(
            "the VM is mapped; if the service has no instance id in FulcrumCore, request the action create there again"
        )
