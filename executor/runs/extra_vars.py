"""Makes the members of the extra var `vm` that describe a guest, from a service's properties. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from executor.errors import ErrorCode, JobError
from executor.model import GuestKind
from executor.runs.network_properties import NicProperties
from executor.runs.request import PlanSettings, RunRequest
from executor.runs.vm_properties import VmProperties, read_properties

#: Optional properties that have the same name in `vm`. A playbook does not change a property that is not given.
HARDWARE = ("sockets", "cpu_type", "balloon_mib", "swap_mib", "onboot", "protection", "guest_agent")
MAX_DESCRIPTION_LENGTH = 200
#: The beginning of a marker: the line in a VM's description that names the VM's service (`mappings.marker_for`). The
#: case of letters is ignored, because `ProxmoxReader` ignores it when it reads a marker.
MARKER_START = re.compile(r"smith-uid\s*=", re.IGNORECASE)
#: Maps each cloud-init property of a service to the member of `vm.cloud_init` that contains its value.
CLOUD_INIT = {
    "ciUser": "user",
    "ciPassword": "password",
    "sshPublicKeys": "ssh_public_keys",
    "vendorSnippet": "vendor_snippet",
}


def create_vars(request: RunRequest, settings: PlanSettings) -> dict[str, Any]:
    """Return the members for `create`: the whole configuration of the guest, and what it is created from."""
    properties = _properties_of(request)
    members = {
        **_configuration(properties, request),
        **_source(properties, request, settings),
        "storage": settings.storage,
        "pool": settings.pool,
        "network": _network(properties, settings),
        "cloud_init": _cloud_init(properties),
    }
    return members | ({"networks": _nics(properties)} if properties.networks else {})


def update_vars(request: RunRequest, settings: PlanSettings) -> dict[str, Any]:
    """Return the members for `update`.

    FulcrumCore sends all properties with each update. The network, the NICs and the login are included only if they
    differ from the service's properties before the update.
    """
    properties = _properties_of(request)
    members = _configuration(properties, request)
    if _differs(request, "network"):
        members["network"] = _network(properties, settings)
    if _differs(request, "networks"):
        members["networks"] = _nics(properties)
    if properties.allow_reboot:
        members["allow_reboot"] = True
    if changed := [name for name in CLOUD_INIT if _differs(request, name)]:
        if "sshPublicKeys" in changed and not properties.ssh_public_keys:
            # An empty list is not sent to Proxmox. The job would succeed, although users can still log in with the old
            # keys.
            raise JobError(ErrorCode.INVALID_REQUEST, "sshPublicKeys cannot be emptied, only replaced")
        cloud_init, changed_members = _cloud_init(properties), [CLOUD_INIT[name] for name in changed]
        members["cloud_init"] = {name: cloud_init[name] for name in changed_members if name in cloud_init}
    return members


def resize_vars(properties: VmProperties) -> dict[str, Any]:
    """Return the members for `resize`: the sizes of the disks."""
    disks = [{"disk": disk.disk, "size_gib": disk.size_gib} for disk in properties.disks if disk.size_gib]
    return {"disk_gib": properties.disk_gib, **({"disks": disks} if disks else {})}


def bridge_of(properties: VmProperties, settings: PlanSettings) -> str:
    """Return the bridge of the first NIC."""
    return properties.network.bridge or settings.bridge


def os_template(name: str, os_templates: Mapping[str, str]) -> str:
    """Return the volume of a container's OS template, such as `local:vztmpl/debian.tar.zst`.

    `name` is a key of `os_templates`, or the volume itself. Raises JobError NOT_FOUND when no template has this name.
    """
    if ":" in name:
        return name
    if name not in os_templates:
        known = ", ".join(sorted(os_templates)) or "none"
        raise JobError(ErrorCode.NOT_FOUND, f"no OS template is called {name} (PROXMOX_OS_TEMPLATES has: {known})")
    return os_templates[name]


def describe(service_name: str) -> str:
    """Return the VM's description: the service's name as one printable line.

    A name that looks like a marker is changed, because it would assign the VM to another service.
    """
    printable = "".join(char if char.isprintable() else " " for char in service_name)
    return MARKER_START.sub("smith-uid ", " ".join(printable.split()))[:MAX_DESCRIPTION_LENGTH]


def _properties_of(request: RunRequest) -> VmProperties:
    properties = read_properties(request.properties)
    if properties.kind != request.kind:
        raise JobError(ErrorCode.INVALID_REQUEST, f"the guest is of kind {request.kind}, which cannot be changed")
    return properties


def _configuration(properties: VmProperties, request: RunRequest) -> dict[str, Any]:
    """Return the members that `create` and `update` have in common."""
    members: dict[str, Any] = {
        "cores": properties.cores,
        "memory_mib": properties.memory_mib,
        "disk_gib": properties.disk_gib,
        "description": describe(request.service_name),
        **_hardware(properties),
    }
    return members | ({"tags": list(properties.tags)} if request.kind == GuestKind.QEMU else {})


def _differs(request: RunRequest, name: str) -> bool:
    """True when the property is given and differs from its value before the update."""
    return name in request.properties and request.properties.get(name) != request.previous_properties.get(name)


def _source(properties: VmProperties, request: RunRequest, settings: PlanSettings) -> dict[str, Any]:
    """Return the member that names what the guest is created from.

    It is a template, an OS template (for a container), an ISO image, or `blank` (for a VM with empty disks).
    """
    if not properties.has_source:
        raise JobError(ErrorCode.INVALID_REQUEST, "image is missing: it names the template (or iso, blank, osTemplate)")
    if properties.image:
        linked = {} if settings.full_clones else {"full_clone": False}
        return {"template_vmid": request.template_vmid or _template(properties.image, settings.templates), **linked}
    if not settings.storage:
        raise JobError(ErrorCode.INVALID_REQUEST, "PROXMOX_STORAGE is not set, and without a template it must be")
    if properties.os_template:
        return {"os_template": os_template(properties.os_template, settings.os_templates)}
    return {"iso": properties.iso} if properties.iso else {"blank": True}


def _template(image: str, templates: Mapping[str, int]) -> int:
    if (vmid := templates.get(image)) is None:
        known = ", ".join(sorted(templates)) or "none"
        raise JobError(ErrorCode.NOT_FOUND, f"no template is called {image} (PROXMOX_TEMPLATES has: {known})")
    return vmid


def _hardware(properties: VmProperties) -> dict[str, Any]:
    """Return the optional hardware properties that are given."""
    given = {name: getattr(properties, name) for name in HARDWARE}
    lists = {
        "boot_order": list(properties.boot_order),
        "disks": [disk.model_dump(exclude_none=True) for disk in properties.disks],
    }
    return {name: value for name, value in (given | lists).items() if value not in (None, [])}


def _network(properties: VmProperties, settings: PlanSettings) -> dict[str, Any]:
    network = properties.network
    members = {
        **network.model_dump(exclude_none=True),
        "bridge": bridge_of(properties, settings),
        "dns_servers": list(network.dns_servers),
        "search_domains": list(network.search_domains),
    }
    return {name: value for name, value in members.items() if value != "" and (value or name != "search_domains")}


def _nics(properties: VmProperties) -> list[dict[str, Any]]:
    return [nic.model_dump(include=set(NicProperties.model_fields), exclude_none=True) for nic in properties.networks]


def _cloud_init(properties: VmProperties) -> dict[str, Any]:
    members = {
        "user": properties.ci_user,
        "password": properties.ci_password,
        "ssh_public_keys": list(properties.ssh_public_keys),
        "vendor_snippet": properties.vendor_snippet,
    }
    return {name: value for name, value in members.items() if value}
