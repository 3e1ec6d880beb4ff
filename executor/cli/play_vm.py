"""Completes the extra variable `vm` of `smith play` with the VM's identity, defaults, and answers of the operator."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping
from typing import Any

import typer

from executor.cli.arguments import EXIT_INTERRUPTED, CommandFailed, UnknownReference
from executor.cli.mapping_changes import find_mapping
from executor.cli.output import sanitized, show_error, show_text
from executor.cli.play_values import EXPECTED, Options, parse_value
from executor.cli.store import open_database
from executor.database import queries
from executor.database.engine import reading
from executor.database.tables import Mapping as VmMapping
from executor.model import GuestKind, JobStatus
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.runs.actions import Action
from executor.settings.settings import Settings

#: The members that name the source of a new VM or container. The action `create` needs one of them.
CREATE_SOURCES = ("template_vmid", "template", "iso", "blank", "os_template")
#: The members that identify the VM. With --service, their values come from the service's mapping.
IDENTITY_MEMBERS = ("service_id", "vmid", "name", "cluster")


def find_mapping_of(settings: Settings, reference: str, *, is_check: bool) -> VmMapping:
    """Return the service's mapping.

    Raises UnknownReference when no mapping matches, and CommandFailed when a job of the service is running. With
    `is_check` a running job is no error, because the playbook then changes nothing.
    """
    with open_database(settings) as engine, reading(engine) as session:
        mapping = find_mapping(session, reference.strip())
        jobs = queries.list_jobs(session, statuses=[JobStatus.PROCESSING], service_id=mapping.service_id, limit=1)
    if jobs and not is_check:
        raise CommandFailed(f"job {jobs[0].id} of {mapping.name} is running: wait for its end, or cancel it first")
    return mapping


def identify(mapping: VmMapping | None, vmid: int | None, action: Action, settings: Settings) -> dict[str, Any]:
    """Return the members that identify the VM: from the mapping if there is one, or from Proxmox if `vmid` is given.

    The action `create` with a VMID gets only this VMID, because the VM does not exist yet.
    """
    if mapping is not None:
        known = {name: getattr(mapping, name) for name in (*IDENTITY_MEMBERS, "node") if getattr(mapping, name)}
        # The roles' default kind is a QEMU VM.
        return known | ({"kind": mapping.kind} if mapping.kind != GuestKind.QEMU else {})
    if vmid is None:
        return {}
    if action.name == "create":
        return {"vmid": vmid}
    return _identify_by_vmid(vmid, settings)


def _identify_by_vmid(vmid: int, settings: Settings) -> dict[str, Any]:
    """Return the members that identify the VM, read from Proxmox.

    The service's id comes from the marker, the line in the VM's description that names the service. Raises
    UnknownReference when Proxmox does not list the VM for our API token, or when the VM has no marker.
    """
    reader = ProxmoxReader(ProxmoxConnection.from_settings(settings))
    row = next((row for row in reader.vms() if row.vmid == vmid), None)
    if row is None:
        raise UnknownReference(f"the token sees no VM {vmid}")
    service_id = reader.marker_of(reader.vm_config(row.node, vmid, kind=row.kind))
    if not service_id:
        raise UnknownReference(f"VM {vmid} ({row.name}) has no marker of ours, so no action may change it")
    kind = {"kind": row.kind} if row.kind != GuestKind.QEMU else {}
    return {"service_id": service_id, "vmid": vmid, "name": row.name, "node": row.node, **kind}


def complete(
    given: dict[str, Any], action: Action, settings: Settings, identity: dict[str, Any], options: Options
) -> dict[str, Any]:
    """Return the variable `vm` from the defaults, the `given` values of the command line, and the VM's identity.

    The operator is asked for each missing member. Raises typer.BadParameter if a given value contradicts the identity,
    or if a member is missing and there is no terminal.
    """
    for name in IDENTITY_MEMBERS:
        if name in given and name in identity and given[name] != identity[name]:
            value = sanitized(str(given[name]))
            raise typer.BadParameter(f"the VM's {name} is {identity[name]}, not {value}")
    vm = {**_defaults(action, settings, given), **given, **identity}
    missing = {name: option for name, option in options.items() if option.get("required") and vm.get(name) is None}
    if action.name == "create" and not any(vm.get(source) for source in CREATE_SOURCES):
        missing["template"] = options.get("template", {})
    if missing and not sys.stdin.isatty():
        lines = "\n".join(f"  {name}: {_description(option)}" for name, option in missing.items())
        raise typer.BadParameter(f"required members of vm are missing; set them with --vars or -e:\n{lines}")
    for name, option in missing.items():
        vm[name] = _ask(name, option, vm)
    return _with_template(vm, settings)


def _defaults(action: Action, settings: Settings, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members that the executor sets from the settings for a job with this action."""
    found: dict[str, Any] = {
        "cluster": settings.smith_cluster,
        "timeout_s": int(settings.smith_playbook_timeout_s),
        "shutdown_timeout_s": int(settings.smith_shutdown_timeout_s),
    }
    if action.name in ("start", "restart"):
        found["address_timeout_s"] = int(settings.smith_address_timeout_s)
    if action.name == "backup" and settings.proxmox_backup_storage:
        found["backup_storage"] = settings.proxmox_backup_storage
    if action.name == "delete":
        backup_storage = settings.proxmox_backup_storage if settings.smith_final_backup else ""
        options = {
            "grace_s": int(settings.smith_delete_grace_s),
            "purge": settings.smith_delete_purge,
            "final_backup": backup_storage,
        }
        found |= {name: value for name, value in options.items() if value}
    if action.name == "create":
        if not settings.proxmox_full_clones:
            found["full_clone"] = False
        places = {"storage": settings.proxmox_storage, "pool": settings.proxmox_pool}
        found |= {name: place for name, place in places.items() if place}
        if not (given.get("network") or {}).get("bridge") and settings.proxmox_bridge:
            found["bridge"] = settings.proxmox_bridge
        if len(settings.proxmox_nodes) == 1:
            found["node"] = settings.proxmox_nodes[0]
    return found


def _with_template(vm: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Replace a template's name by its VMID from PROXMOX_TEMPLATES or its volume from PROXMOX_OS_TEMPLATES."""
    if (volume := settings.proxmox_os_templates.get(str(vm.get("os_template") or ""))) is not None:
        vm["os_template"] = volume
    known = settings.proxmox_templates.get(str(vm.get("template") or ""))
    if known is not None and not vm.get("template_vmid"):
        vm["template_vmid"] = known
        del vm["template"]
    return vm


def _ask(name: str, option: Mapping[str, Any], vm: Mapping[str, Any]) -> Any:
    """Ask the operator for the member until the answer has the option's type. Raises typer.Exit after Ctrl-C."""
    kind = str(option.get("type") or "str")
    default = None
    if name == "service_id":
        default = str(uuid.uuid4())
    elif name == "name":
        default = f"vm-{str(vm.get('service_id', '')).replace('-', '')[:8]}"
    show_text(f"{name}: {_description(option)}")
    while True:
        try:
            text = typer.prompt(name, default=default, hide_input=bool(option.get("no_log")), err=False)
        except typer.Abort:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        try:
            return parse_value(str(text), kind)
        except ValueError:
            show_error(f"{name} must be {EXPECTED[kind]}")


def _description(option: Mapping[str, Any]) -> str:
    """Return the description of the option in its role's argument_specs, in one line."""
    text = option.get("description") or "required"
    return " ".join(str(line) for line in text) if isinstance(text, list) else str(text)
