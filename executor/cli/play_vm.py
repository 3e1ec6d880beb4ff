"""Completes the extra variable `vm` of `smith play` with the VM's identity, defaults, and answers of the operator.

`vm` is a dictionary. Its keys are called members. The argument_specs of the playbook's roles describe each member.
The VM's identity consists of the members that identify the VM, such as `vmid` and `service_id`.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping
from typing import Any

import typer

from executor.cli.ansible_playbook import PlaybookRequest
from executor.cli.arguments import EXIT_INTERRUPTED
from executor.cli.output import show_error, show_text
from executor.cli.play_target import COMPARED_MEMBERS
from executor.cli.play_values import VALUE_DESCRIPTION_BY_TYPE, VmMemberSpecs, parse_value, secrets_in
from executor.redaction import redactor
from executor.runs import action_schema
from executor.runs.actions import Action, collection_folder
from executor.runs.extra_vars import find_os_template
from executor.runs.request import PlaybookSettings
from executor.settings.offered import allowed_values, template_not_configured_error
from executor.settings.settings import Settings
from executor.views.text import SHORT_ID_LENGTH, sanitized

#: The members that name the source of a new VM or container. The action `create` needs one of these members.
#: `blank` creates a VM with empty disks, and `os_template` creates a container.
SOURCE_MEMBERS_OF_CREATE = ("template_vmid", "template", "iso", "blank", "os_template")


def make_vm_variable(
    vm_members_from_operator: dict[str, Any],
    action: Action,
    settings: Settings,
    identity: dict[str, Any],
    member_specs: VmMemberSpecs,
) -> dict[str, Any]:
    """Return the variable `vm` from the settings, the operator's members (--vars and -e), and the VM's identity.

    The operator is asked for each missing member. Raises typer.BadParameter if an operator's member contradicts the
    identity, or if a member is missing and there is no terminal.
    """
    for name in COMPARED_MEMBERS:  # the members that must equal the VM's identity if the operator sets them
        if name in vm_members_from_operator and name in identity and vm_members_from_operator[name] != identity[name]:
            value = sanitized(str(vm_members_from_operator[name]))
            raise typer.BadParameter(f"the VM's {name} is {identity[name]}, not {value}")
    vm = {**_members_from_settings(action, settings, vm_members_from_operator), **vm_members_from_operator, **identity}
    # The bridges, VLANs, storages and tags that the settings allow. The operator cannot allow others with --vars or -e.
    vm["allowed"] = allowed_values(settings)
    required_member_specs = {
        name: member_spec for name, member_spec in member_specs.items() if member_spec.get("required")
    }
    # The argument_specs of the members that are missing in `vm`, keyed by the member's name.
    missing_members = {name: member_spec for name, member_spec in required_member_specs.items() if vm.get(name) is None}
    if action.name == "create" and not any(vm.get(source) for source in SOURCE_MEMBERS_OF_CREATE):
        missing_members["template"] = member_specs.get("template", {})
    if missing_members and not sys.stdin.isatty():
        missing_member_lines = "\n".join(
            f"  {name}: {_describe_member(member_spec)}" for name, member_spec in missing_members.items()
        )
        raise typer.BadParameter(
            f"required members of vm are missing; set them with --vars or -e:\n{missing_member_lines}"
        )
    for name, member_spec in missing_members.items():
        vm[name] = _ask_for_member(name, member_spec, vm)
    return _resolve_template_names(vm, settings)


def _members_from_settings(
    action: Action, settings: Settings, vm_members_from_operator: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the members whose values come from the settings, for the action's playbook."""
    members: dict[str, Any] = {
        "cluster": settings.smith_cluster,
        "timeout_s": int(settings.smith_playbook_timeout_s),
        "shutdown_timeout_s": int(settings.smith_shutdown_timeout_s),
    }
    if action.name in ("start", "restart"):
        # The maximum time for which the action waits until the guest agent reports an IP address.
        members["address_timeout_s"] = int(settings.smith_address_timeout_s)
    if action.name == "backup" and settings.proxmox_backup_storage:
        members["backup_storage"] = settings.proxmox_backup_storage
    if action.name == "delete":
        final_backup_storage = settings.proxmox_backup_storage if settings.smith_final_backup else ""
        delete_members = {
            # The time for which the VM is kept, stopped and marked for deletion, before it is destroyed.
            "grace_s": int(settings.smith_delete_grace_s),
            # Whether the VM is also removed from backup jobs, replication and HA.
            "purge": settings.smith_delete_purge,
            # Whether the action removes the volumes that Proxmox could not delete with the VM.
            "remove_volumes_left": settings.smith_delete_remove_volumes,
            # The storage for the backup that is made before the VM is destroyed.
            "final_backup": final_backup_storage,
        }
        members |= {name: value for name, value in delete_members.items() if value}
    if action.name == "create":
        if not settings.proxmox_full_clones:
            members["full_clone"] = False
        location = {"storage": settings.proxmox_storage, "pool": settings.proxmox_pool}
        members |= {name: value for name, value in location.items() if value}
        # A bridge in the operator's member `network` overrides PROXMOX_BRIDGE.
        operator_network = vm_members_from_operator.get("network") or {}
        if settings.proxmox_bridge and not operator_network.get("bridge"):
            members["bridge"] = settings.proxmox_bridge
        if len(settings.proxmox_nodes) == 1:
            members["node"] = settings.proxmox_nodes[0]
    return members


def _resolve_template_names(vm: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Replace the name of a template by the VMID or the volume from the settings.

    PROXMOX_TEMPLATES has the VMIDs of VM templates, and PROXMOX_OS_TEMPLATES has the volumes of container templates.
    Raises JobError for a template that is not in its setting. With PROXMOX_ANY_TEMPLATE, every VM template is accepted,
    and every container template that is given by its volume. The name of a container template must always be in
    PROXMOX_OS_TEMPLATES.
    """
    if vm.get("os_template"):
        vm["os_template"] = find_os_template(
            str(vm["os_template"]), PlaybookSettings.from_settings(settings, collection_folder())
        )
    if not settings.proxmox_any_template:
        _require_configured_template(vm, settings)
    template_vmid = settings.proxmox_templates.get(str(vm.get("template") or ""))
    if template_vmid is not None and not vm.get("template_vmid"):
        vm["template_vmid"] = template_vmid
        del vm["template"]
    return vm


def _require_configured_template(vm: Mapping[str, Any], settings: Settings) -> None:
    """Raise JobError if `vm` has a VM template, by name or VMID, that PROXMOX_TEMPLATES does not have."""
    vmid_by_name = settings.proxmox_templates
    for template, configured_templates in (
        (vm.get("template"), vmid_by_name),
        (vm.get("template_vmid"), vmid_by_name.values()),
    ):
        if template and template not in configured_templates:
            raise template_not_configured_error(str(template), vmid_by_name)


def _ask_for_member(name: str, member_spec: Mapping[str, Any], vm: Mapping[str, Any]) -> Any:
    """Ask the operator for the member until the answer has the member's type. Raises typer.Exit after Ctrl-C."""
    member_type = str(member_spec.get("type") or "str")
    default = None
    if name == "service_id":
        default = str(uuid.uuid4())
    elif name == "name":
        short_service_id = str(vm.get("service_id", "")).replace("-", "")[:SHORT_ID_LENGTH]
        default = f"vm-{short_service_id}"
    show_text(f"{name}: {_describe_member(member_spec)}")
    while True:
        try:
            text = typer.prompt(name, default=default, hide_input=bool(member_spec.get("no_log")), err=False)
        except typer.Abort:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        try:
            return parse_value(str(text), member_type)
        except ValueError:
            show_error(f"{name} must be {VALUE_DESCRIPTION_BY_TYPE[member_type]}")


def _describe_member(member_spec: Mapping[str, Any]) -> str:
    """Return the description of the member in its role's argument_specs, in one line."""
    description = member_spec.get("description") or "required"
    if isinstance(description, list):
        return " ".join(str(line) for line in description)
    return str(description)


def build_request(
    action: Action, vm: dict[str, Any], member_specs: VmMemberSpecs, *, is_check_mode: bool
) -> PlaybookRequest:
    """Register the secrets in `vm` with the redactor, and return the request for the playbook.

    Raises JobError if the service's properties (the member `properties`) violate the action's schema.
    """
    action_schema.check_properties(action, vm.get("properties") or {})
    redactor.add(*secrets_in(vm, member_specs))
    return PlaybookRequest(action=action.name, playbook=action.playbook, vm=vm, is_check_mode=is_check_mode)
