"""Makes the members of the extra var `vm` that describe a guest, from a service's properties. Pure functions.

`PlaybookSettings` are the operator's settings for all runs, such as the default bridge. A `RunRequest` has the facts
about one job, such as the service's properties.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from executor.errors import JobError
from executor.model import GuestKind
from executor.runs.request import PlaybookSettings, RunRequest
from executor.runs.vm_properties import IPV4_AND_IPV6_NIC_PROPERTY_NAMES, TAG_PATTERN, VmProperties, read_properties
from executor.settings.offered import template_not_configured_error
from executor.shared.error_codes import ErrorCode
from executor.shared.marker import without_imitated_smith_lines

#: Optional hardware properties that have the same name in `VmProperties` and in `vm`. If a property is missing, the
#: playbook leaves the value in the VM's configuration unchanged.
OPTIONAL_HARDWARE_PROPERTIES = ("sockets", "cpu_type", "balloon_mib", "swap_mib", "onboot", "protection", "guest_agent")
MAX_DESCRIPTION_LENGTH = 200
#: Maps each cloud-init property of a service to the member of `vm.cloud_init` that contains its value.
CLOUD_INIT_MEMBERS = {
    "ciUser": "user",
    "ciPassword": "password",
    "sshPublicKeys": "ssh_public_keys",
    "vendorSnippet": "vendor_snippet",
}


def members_for_create(request: RunRequest, settings: PlaybookSettings) -> dict[str, Any]:
    """Return the members of `vm` for `create`: the guest's whole configuration, and its source, such as a template."""
    properties = _read_request_properties(request)
    members = {
        **_configuration_members(properties, request),
        **_source_members(properties, request, settings),
        "storage": settings.storage,
        "pool": settings.pool,
        "network": _network_members(properties, settings),
        "cloud_init": _cloud_init_members(properties),
    }
    if properties.networks:
        members["networks"] = _nic_members(properties)
    return members


def members_for_update(request: RunRequest, settings: PlaybookSettings) -> dict[str, Any]:
    """Return the members of `vm` for `update`.

    FulcrumCore sends all properties with each update. The members `network` (the first NIC), `networks` (all NICs) and
    `cloud_init` (user, password, SSH keys, snippet) are included only if the update changes the properties from
    which they are made.
    """
    properties = _read_request_properties(request)
    members = _configuration_members(properties, request)
    if request.kind == GuestKind.QEMU and (removed_tags := _removed_tags(request)):
        members["previous_tags"] = removed_tags  # the playbook removes these tags from the VM
    if _has_property_changed(request, "network"):
        members["network"] = _network_members(properties, settings)
    if _has_property_changed(request, "networks"):
        members["networks"] = _nic_members(properties)
    if properties.allow_reboot:
        members["allow_reboot"] = True  # the playbook may restart the guest so that all new values take effect
    if changed_names := [name for name in CLOUD_INIT_MEMBERS if _has_property_changed(request, name)]:
        if "sshPublicKeys" in changed_names and not properties.ssh_public_keys:
            # The playbook would not send an empty list to Proxmox. So the job would succeed, although users could still
            # log in with the old keys.
            raise JobError(ErrorCode.INVALID_REQUEST, "sshPublicKeys cannot be emptied, only replaced")
        cloud_init = _cloud_init_members(properties)
        member_names = [CLOUD_INIT_MEMBERS[name] for name in changed_names]
        members["cloud_init"] = {name: cloud_init[name] for name in member_names if name in cloud_init}
    return members


def members_for_resize(properties: VmProperties) -> dict[str, Any]:
    """Return the members of `vm` for `resize`: the sizes of the first disk (`disk_gib`) and of other disks."""
    members: dict[str, Any] = {"disk_gib": properties.disk_gib}
    if disks := [{"disk": disk.disk, "size_gib": disk.size_gib} for disk in properties.disks if disk.size_gib]:
        members["disks"] = disks
    return members


def bridge_of_first_nic(properties: VmProperties, settings: PlaybookSettings) -> str:
    """Return the bridge of the first NIC: the bridge in the property `network`, or the bridge in the settings."""
    return properties.network.bridge or settings.bridge


def find_os_template(name_or_volume: str, settings: PlaybookSettings) -> str:
    """Return the volume of a container's OS template, such as `local:vztmpl/debian.tar.zst`.

    PROXMOX_OS_TEMPLATES must contain the name or the volume. If PROXMOX_ANY_TEMPLATE is set, every other volume is
    accepted, too. Raises JobError NOT_FOUND if the template is not accepted.
    """
    os_templates = settings.os_templates
    if name_or_volume in os_templates:
        return os_templates[name_or_volume]
    is_volume = ":" in name_or_volume
    if is_volume and (settings.may_use_any_template or name_or_volume in os_templates.values()):
        return name_or_volume
    if settings.may_use_any_template:
        # `condition` is why the template is refused. Without it, the error says `PROXMOX_ANY_TEMPLATE is not set`.
        condition = "it is not a volume, such as local:vztmpl/debian.tar.zst"
        raise template_not_configured_error(name_or_volume, os_templates, "PROXMOX_OS_TEMPLATES", condition)
    raise template_not_configured_error(name_or_volume, os_templates, "PROXMOX_OS_TEMPLATES")


def make_description(service_name: str) -> str:
    """Return the VM's description: the service's name as one printable line.

    Agent Smith writes lines that begin with `smith-` to the VM's description, such as the marker `smith-uid=…`, which
    names the VM's service. A part of the service's name that imitates the beginning of such a line is changed:
    otherwise the name could assign the VM to another service.
    """
    printable_name = "".join(char if char.isprintable() else " " for char in service_name)
    one_line = " ".join(printable_name.split())
    return without_imitated_smith_lines(one_line)[:MAX_DESCRIPTION_LENGTH]


def _read_request_properties(request: RunRequest) -> VmProperties:
    properties = read_properties(request.properties)
    if properties.kind != request.kind:
        reason = f"the properties describe a guest of kind {properties.kind}, but the guest is of kind {request.kind}"
        raise JobError(ErrorCode.INVALID_REQUEST, reason)
    return properties


def _configuration_members(properties: VmProperties, request: RunRequest) -> dict[str, Any]:
    """Return the members of `vm` that both `create` and `update` need."""
    members: dict[str, Any] = {
        "cores": properties.cores,
        "memory_mib": properties.memory_mib,
        "disk_gib": properties.disk_gib,
        "description": make_description(request.service_name),
        **_hardware_members(properties),
    }
    if request.kind == GuestKind.QEMU:
        members["tags"] = list(properties.tags)
    return members


def _has_property_changed(request: RunRequest, name: str) -> bool:
    """True when the property is given and differs from its value before the update."""
    return name in request.properties and request.properties.get(name) != request.previous_properties.get(name)


def _removed_tags(request: RunRequest) -> list[str]:
    """Return the tags that the update removes from the service's property `tags`."""
    earlier_tags = request.previous_properties.get("tags")
    earlier_tags = earlier_tags if isinstance(earlier_tags, list) else []
    current_tags = {tag for tag in request.properties.get("tags") or () if isinstance(tag, str)}
    removed_tags = [tag for tag in earlier_tags if isinstance(tag, str) and tag not in current_tags]
    return [tag for tag in removed_tags if TAG_PATTERN.fullmatch(tag)]


def _source_members(properties: VmProperties, request: RunRequest, settings: PlaybookSettings) -> dict[str, Any]:
    """Return the members that name the source of the guest.

    The source is a template, an OS template (for a container), an ISO image, or `blank` (for a VM with empty disks).
    """
    if not properties.has_source:
        raise JobError(
            ErrorCode.INVALID_REQUEST,
            "image is missing: give the name of a template (or iso, blank or osTemplate instead of image)",
        )
    if properties.image:
        # `request.template_vmid` is the template that the agent has chosen for the VM's node; 0 if it has chosen none.
        template_vmid = request.template_vmid or _find_template_vmid(properties.image, settings.templates)
        clone_members = {} if settings.makes_full_clones else {"full_clone": False}
        return {"template_vmid": template_vmid, **clone_members}
    if not settings.storage:
        raise JobError(ErrorCode.INVALID_REQUEST, "PROXMOX_STORAGE is not set, but a guest without a template needs it")
    if properties.os_template:
        return {"os_template": find_os_template(properties.os_template, settings)}
    return {"iso": properties.iso} if properties.iso else {"blank": True}


def _find_template_vmid(image: str, templates: Mapping[str, int]) -> int:
    if image not in templates:
        raise template_not_configured_error(image, templates)
    return templates[image]


def _hardware_members(properties: VmProperties) -> dict[str, Any]:
    """Return the members for the optional hardware properties that the service sets."""
    members = {name: getattr(properties, name) for name in OPTIONAL_HARDWARE_PROPERTIES}
    members["boot_order"] = list(properties.boot_order)
    members["disks"] = [disk.model_dump(exclude_none=True) for disk in properties.disks]
    return {name: value for name, value in members.items() if value not in (None, [])}


def _network_members(properties: VmProperties, settings: PlaybookSettings) -> dict[str, Any]:
    """Return the value of the member `network`, which configures the first NIC."""
    network = properties.network
    members = {
        **network.model_dump(exclude_none=True),
        "bridge": bridge_of_first_nic(properties, settings),
    }
    for name in ("dns_servers", "search_domains"):  # an empty list removes the values, a missing list changes nothing
        members.pop(name, None)
        if name in network.model_fields_set:
            members[name] = list(getattr(network, name))
    return {name: value for name, value in members.items() if value != ""}


def _nic_members(properties: VmProperties) -> list[dict[str, Any]]:
    """Return the value of the member `networks`.

    If the first NIC has an IP address but no address mode (dhcp, slaac or static), it gets the mode that the property
    `network` contains.
    """
    nics = [nic.model_dump(exclude_none=True) for nic in properties.networks]
    for mode_name, cidr_name, _gateway_name in IPV4_AND_IPV6_NIC_PROPERTY_NAMES:
        if nics and cidr_name in nics[0] and mode_name not in nics[0]:
            nics[0][mode_name] = getattr(properties.network, mode_name)
    return nics


def _cloud_init_members(properties: VmProperties) -> dict[str, Any]:
    members = {
        "user": properties.ci_user,
        "password": properties.ci_password,
        "ssh_public_keys": list(properties.ssh_public_keys),
        "vendor_snippet": properties.vendor_snippet,
    }
    return {name: value for name, value in members.items() if value}
