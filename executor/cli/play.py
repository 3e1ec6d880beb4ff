"""`smith play`: runs one action with ansible-playbook, and shows the result as the executor would store it.

The playbook gets one extra variable, the dictionary `vm`. A member of `vm` is a key with its value, such as cores=4.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from executor.cli import action_checks, ansible_playbook
from executor.cli.actions import action_folders
from executor.cli.arguments import EXIT_INTERRUPTED, AsJson
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.output import show_error, show_json, show_text
from executor.cli.play_values import read_members, secrets_in
from executor.cli.play_vm import complete_vm_variable, find_service_mapping, identity_members
from executor.cli.store import open_database
from executor.cli.tables import show_fields, show_heading
from executor.database import mappings
from executor.database.engine import transaction
from executor.database.tables import Mapping as VmMapping
from executor.errors import EXIT_FAILURE, DatabaseError
from executor.model import JobResult
from executor.redaction import redactor
from executor.runs import action_schema, actions
from executor.settings.settings import Settings


@examples(
    "smith play start --service 100123                REF: a VMID, a VM's name, or the beginning of a service's id",
    "smith play update --service web-1-8f2c0a11 -e cores=4 --check",
    "smith play create --vars vm.yml                  asks for missing members of vm",
    "smith play attach-iso --vmid 100123 -e properties.isoImage=local:iso/debian-13.iso",
)
def play(  # noqa: PLR0913, PLR0917 (each parameter is an option; typer passes all by name)
    name: Annotated[str, typer.Argument(metavar="ACTION", help="As `smith actions list` shows it.")],
    vars_file: Annotated[
        Path | None, typer.Option("--vars", metavar="FILE", exists=True, dir_okay=False, help="YAML with vm: {…}.")
    ] = None,
    member_arguments: Annotated[
        list[str] | None, typer.Option("-e", metavar="KEY=VALUE", help="Set a member of vm, such as cores=4.")
    ] = None,
    service: Annotated[
        str | None, typer.Option("--service", metavar="REF", help="The service's VM; its mapping is updated.")
    ] = None,
    vmid: Annotated[
        int | None, typer.Option("--vmid", metavar="N", help="The VM with this VMID; no mapping is changed.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Show what would be changed, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run an action's playbook with ansible-playbook.

    The playbook's output is shown while the playbook runs. Then the result is shown.
    """
    if service is not None and vmid is not None:
        raise typer.BadParameter("--service and --vmid exclude each other")
    settings = open_settings()
    settings.require_proxmox()
    action = actions.find(name, action_folders())
    vm_options = action_checks.read_vm_options(action.playbook)
    operator_members = read_members(vars_file, member_arguments or [], vm_options)
    mapping = None
    if service is not None:
        mapping = find_service_mapping(settings, service, is_check_mode=check)
    identity = identity_members(mapping, vmid, action, settings)
    vm = complete_vm_variable(operator_members, action, settings, identity, vm_options)
    action_schema.check_properties(action, vm.get("properties") or {})
    redactor.add(*secrets_in(vm, vm_options))
    manual_run = ansible_playbook.ManualRun(action=name, playbook=action.playbook, vm=vm, is_check_mode=check)
    result = _run(manual_run, settings, as_json=as_json)
    is_stored = False
    if mapping is not None and not check:
        is_stored = _store_result(settings, mapping, result)
    _show(result, mapping, is_check_mode=check, is_stored=is_stored, as_json=as_json)
    if not result.succeeded:
        raise typer.Exit(EXIT_FAILURE)


def _run(manual_run: ansible_playbook.ManualRun, settings: Settings, *, as_json: bool) -> JobResult:
    """Run the playbook and return the result. With --json, the playbook's output goes to stderr."""
    try:
        return ansible_playbook.run(manual_run, settings, output=sys.stderr if as_json else sys.stdout)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _store_result(settings: Settings, mapping: VmMapping, result: JobResult) -> bool:
    """Store the result of a successful run in the service's mapping. Return whether it was stored.

    A problem is printed and not raised, because the playbook has already changed the VM.
    """
    if not result.succeeded:
        return False
    if result.vm.get("vmid") != mapping.vmid:
        reported_vmid = result.vm.get("vmid")
        show_error(f"the mapping of VM {mapping.vmid} is not changed: the playbook reports VM {reported_vmid}")
        return False
    try:
        with open_database(settings) as engine, transaction(engine) as session:
            mappings.apply_result(session, mapping.id, result.vm)
    except DatabaseError as error:
        show_error(f"the mapping could not be written, although the playbook has changed the VM: {error}")
        return False
    return True


def _show(result: JobResult, mapping: VmMapping | None, *, is_check_mode: bool, is_stored: bool, as_json: bool) -> None:
    if as_json:
        document = {
            "succeeded": result.succeeded,
            "error_code": result.code,
            "error_message": result.operator_message or None,
        }
        show_json({**document, "check": is_check_mode, "mapping_updated": is_stored, "vm": result.vm})
        return
    if result.vm:
        show_heading("Plan" if is_check_mode else "Result")
        show_fields(_planned_fields(result.vm) if is_check_mode else result.vm)
    if not result.succeeded:
        show_error(result.operator_message)
    elif is_check_mode:
        show_text("nothing was changed" if result.vm.get("planned") else "nothing would be changed")
    elif mapping is None:
        show_text("no mapping was changed, because a mapping is updated only with --service")
    elif is_stored:
        show_text(f"the mapping of service {mapping.service_id} is up to date")
    else:
        show_text("no mapping was changed")


def _planned_fields(vm: Mapping[str, Any]) -> dict[str, Any]:
    """Return the VM's identity and the changes that the playbook would make, from the result of a run with --check."""
    identity = {name: vm.get(name) for name in ("vmid", "name", "node", "status")}
    return identity | dict(vm.get("planned") or {})
