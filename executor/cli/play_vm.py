"""Completes the extra variable `vm` of `smith play` with the VM's identity, defaults, and answers of the operator."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping
from typing import Any

import typer

from executor.cli.arguments import EXIT_INTERRUPTED, CommandFailed, UnusableReference
from executor.cli.mapping_changes import find_mapping
from executor.cli.output import SHORT_ID_LENGTH, sanitized, show_error, show_text
from executor.cli.play_values import DESCRIPTION_BY_TYPE, VmOptions, parse_value
from executor.cli.store import open_database
from executor.database import queries
from executor.database.engine import reading
from executor.database.tables import Mapping as VmMapping
from executor.model import GuestKind, JobStatus
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.proxmox.rows import with_configuration
from executor.runs.actions import Action, ansible_home
from executor.runs.extra_vars import find_os_template
from executor.runs.request import PlanSettings
from executor.settings.offered import allowed_values, template_not_offered
from executor.settings.settings import Settings

#: The members that name the source of a new VM or container. The action `create` needs one of them.
CREATE_SOURCES = ("template_vmid", "template", "iso", "blank", "os_template")
#: The members of the VM's identity that an operator's value must not contradict. The members `node` and `kind` also
#: belong to the identity, but they are not compared with the operator's values.
COMPARED_MEMBERS = ("service_id", "vmid", "name", "cluster")


def find_service_mapping(settings: Settings, reference: str, *, is_check_mode: bool) -> VmMapping:
    """Return the mapping that matches the reference.

    Raises UnusableReference when no mapping matches, and CommandFailed when a job of the service is running. In check
    mode a running job is accepted, because the playbook changes nothing.
    """
    with open_database(settings) as engine, reading(engine) as session:
        mapping = find_mapping(session, reference.strip())
        jobs = queries.list_jobs(session, statuses=[JobStatus.PROCESSING], service_id=mapping.service_id, limit=1)
    if jobs and not is_check_mode:
        raise CommandFailed(f"job {jobs[0].id} of {mapping.name} is running: wait for its end, or cancel it first")
    return mapping


def identity_members(mapping: VmMapping | None, vmid: int | None, action: Action, settings: Settings) -> dict[str, Any]:
    """Return the members that identify the VM.

    They come from the mapping if there is one, or else from Proxmox if `vmid` is set. Without a mapping, `vmid` is the
    only member for the action `create`, because the VM does not exist yet.
    """
    if mapping is not None:
        values = {name: getattr(mapping, name) for name in (*COMPARED_MEMBERS, "node")}
        identity = {name: value for name, value in values.items() if value}
        return identity | _kind_member(mapping.kind)
    if vmid is None:
        return {}
    if action.name == "create":
        return {"vmid": vmid}
    return _identity_from_proxmox(vmid, settings)


def _identity_from_proxmox(vmid: int, settings: Settings) -> dict[str, Any]:
    """Return the members that identify the VM, read from Proxmox.

    The service's id comes from the marker, a line in the VM's description. Raises UnusableReference when Proxmox does
    not list the VM for our API token, or when the VM has no marker.
    """
    reader = ProxmoxReader(ProxmoxConnection.from_settings(settings))
    vm_row = next((row for row in reader.vms() if row.vmid == vmid), None)
    if vm_row is None:
        raise UnusableReference(f"the token sees no VM {vmid}")
    config = reader.vm_config(vm_row.node, vmid, kind=vm_row.kind)
    vm_row, service_id = with_configuration(vm_row, config), reader.marked_service_id(config)
    if not service_id:
        raise UnusableReference(f"VM {vmid} ({vm_row.name}) has no marker of Agent Smith, so no action may change it")
    identity = {"service_id": service_id, "vmid": vmid, "name": vm_row.name, "node": vm_row.node}
    return identity | _kind_member(vm_row.kind)


def _kind_member(kind: str) -> dict[str, Any]:
    """Return the member `kind`, or nothing for a QEMU VM, because QEMU is the default of the roles."""
    return {"kind": kind} if kind != GuestKind.QEMU else {}


def complete_vm_variable(
    operator_members: dict[str, Any],
    action: Action,
    settings: Settings,
    identity: dict[str, Any],
    options: VmOptions,
) -> dict[str, Any]:
    """Return the variable `vm` from the settings, the operator's members (--vars and -e), and the VM's identity.

    The operator is asked for each missing member. Raises typer.BadParameter if an operator's member contradicts the
    identity, or if a member is missing and there is no terminal.
    """
    for name in COMPARED_MEMBERS:
        if name in operator_members and name in identity and operator_members[name] != identity[name]:
            value = sanitized(str(operator_members[name]))
            raise typer.BadParameter(f"the VM's {name} is {identity[name]}, not {value}")
    vm = {**_members_from_settings(action, settings, operator_members), **operator_members, **identity}
    vm["allowed"] = allowed_values(settings)  # an operator changes it in the settings only, as for the agent's runs
    required_options = {name: option for name, option in options.items() if option.get("required")}
    # The members that are missing in `vm`: the option of each, keyed by its name.
    missing_members = {name: option for name, option in required_options.items() if vm.get(name) is None}
    if action.name == "create" and not any(vm.get(source) for source in CREATE_SOURCES):
        missing_members["template"] = options.get("template", {})
    if missing_members and not sys.stdin.isatty():
        lines = "\n".join(f"  {name}: {_describe_option(option)}" for name, option in missing_members.items())
        raise typer.BadParameter(f"required members of vm are missing; set them with --vars or -e:\n{lines}")
    for name, option in missing_members.items():
        vm[name] = _ask_for_member(name, option, vm)
    return _resolve_template_names(vm, settings)


def _members_from_settings(action: Action, settings: Settings, operator_members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members that the executor sets from the settings for a job with this action."""
    members: dict[str, Any] = {
        "cluster": settings.smith_cluster,
        "timeout_s": int(settings.smith_playbook_timeout_s),
        "shutdown_timeout_s": int(settings.smith_shutdown_timeout_s),
    }
    if action.name in ("start", "restart"):
        members["address_timeout_s"] = int(settings.smith_address_timeout_s)
    if action.name == "backup" and settings.proxmox_backup_storage:
        members["backup_storage"] = settings.proxmox_backup_storage
    if action.name == "delete":
        final_backup_storage = settings.proxmox_backup_storage if settings.smith_final_backup else ""
        delete_members = {
            "grace_s": int(settings.smith_delete_grace_s),
            "purge": settings.smith_delete_purge,
            "final_backup": final_backup_storage,
        }
        members |= {name: value for name, value in delete_members.items() if value}
    if action.name == "create":
        if not settings.proxmox_full_clones:
            members["full_clone"] = False
        location = {"storage": settings.proxmox_storage, "pool": settings.proxmox_pool}
        members |= {name: value for name, value in location.items() if value}
        # A bridge in the operator's member `network` overrides PROXMOX_BRIDGE.
        operator_network = operator_members.get("network") or {}
        if settings.proxmox_bridge and not operator_network.get("bridge"):
            members["bridge"] = settings.proxmox_bridge
        if len(settings.proxmox_nodes) == 1:
            members["node"] = settings.proxmox_nodes[0]
    return members


def _resolve_template_names(vm: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Replace the name of a template by the value from the settings.

    PROXMOX_TEMPLATES has the VMIDs of VM templates, and PROXMOX_OS_TEMPLATES has the volumes of container templates.
    Raises JobError for another template, unless PROXMOX_ANY_TEMPLATE is set.
    """
    if vm.get("os_template"):
        vm["os_template"] = find_os_template(
            str(vm["os_template"]), PlanSettings.from_settings(settings, ansible_home())
        )
    if not settings.proxmox_any_template:
        _require_offered_template(vm, settings)
    template_vmid = settings.proxmox_templates.get(str(vm.get("template") or ""))
    if template_vmid is not None and not vm.get("template_vmid"):
        vm["template_vmid"] = template_vmid
        del vm["template"]
    return vm


def _require_offered_template(vm: Mapping[str, Any], settings: Settings) -> None:
    """Raise JobError if the variable names a VM template that PROXMOX_TEMPLATES does not have."""
    vmid_by_name = settings.proxmox_templates
    for template, offered in (
        (vm.get("template"), vmid_by_name),
        (vm.get("template_vmid"), vmid_by_name.values()),
    ):
        if template and template not in offered:
            raise template_not_offered(str(template), vmid_by_name)


def _ask_for_member(name: str, option: Mapping[str, Any], vm: Mapping[str, Any]) -> Any:
    """Ask the operator for the member until the answer has the option's type. Raises typer.Exit after Ctrl-C."""
    option_type = str(option.get("type") or "str")
    default = None
    if name == "service_id":
        default = str(uuid.uuid4())
    elif name == "name":
        short_service_id = str(vm.get("service_id", "")).replace("-", "")[:SHORT_ID_LENGTH]
        default = f"vm-{short_service_id}"
    show_text(f"{name}: {_describe_option(option)}")
    while True:
        try:
            text = typer.prompt(name, default=default, hide_input=bool(option.get("no_log")), err=False)
        except typer.Abort:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        try:
            return parse_value(str(text), option_type)
        except ValueError:
            show_error(f"{name} must be {DESCRIPTION_BY_TYPE[option_type]}")


def _describe_option(option: Mapping[str, Any]) -> str:
    """Return the description of the option in its role's argument_specs, in one line."""
    description = option.get("description") or "required"
    if isinstance(description, list):
        return " ".join(str(line) for line in description)
    return str(description)
