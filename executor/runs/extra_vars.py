"""The members of the extra var `vm` that describe a guest, made from a service's properties. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from executor.errors import ErrorCode, JobError
from executor.model import GuestKind
from executor.runs.network_properties import NicProperties
from executor.runs.request import PlanSettings, RunRequest
from executor.runs.vm_properties import VmProperties, read_properties

#: Properties that have the same name in the playbooks, which change them only if they are given.
HARDWARE = ("sockets", "cpu_type", "balloon_mib", "swap_mib", "onboot", "protection", "guest_agent")
MAX_DESCRIPTION_LENGTH = 200
#: How a marker begins (`mappings.marker_for`); `ProxmoxReader` ignores upper and lower case.
MARKER_BEGINS = re.compile(r"smith-uid\s*=", re.IGNORECASE)
#: A property of cloud-init, and its member of `vm.cloud_init`.
CLOUD_INIT = {
    "ciUser": "user",
    "ciPassword": "password",
    "sshPublicKeys": "ssh_public_keys",
    "vendorSnippet": "vendor_snippet",
}


def create_vars(request: RunRequest, settings: PlanSettings) -> dict[str, Any]:
    """Return the members of `create`: the whole configuration of the guest, and its source."""
    properties = _properties_of(request)
    found = {
        **_configuration(properties, request),
        **_source(properties, request, settings),
        "storage": settings.storage,
        "pool": settings.pool,
        "network": _network(properties, settings),
        "cloud_init": _cloud_init(properties),
    }
    return found | ({"networks": _nics(properties)} if properties.networks else {})


def update_vars(request: RunRequest, settings: PlanSettings) -> dict[str, Any]:
    """Return the members of `update`. FulcrumCore sends all properties: network and login only where they differ."""
    properties = _properties_of(request)
    found = _configuration(properties, request)
    if _differs(request, "network"):
        found["network"] = _network(properties, settings)
    if _differs(request, "networks"):
        found["networks"] = _nics(properties)
    if properties.allow_reboot:
        found["allow_reboot"] = True
    if changed := [name for name in CLOUD_INIT if _differs(request, name)]:
        if "sshPublicKeys" in changed and not properties.ssh_public_keys:
            # Success would report a change that was not made: the old keys could still log in.
            raise JobError(ErrorCode.INVALID_REQUEST, "sshPublicKeys cannot be emptied, only replaced")
        given, wanted = _cloud_init(properties), [CLOUD_INIT[name] for name in changed]
        found["cloud_init"] = {name: given[name] for name in wanted if name in given}
    return found


def resize_vars(properties: VmProperties) -> dict[str, Any]:
    """Return the members of `resize`: the sizes of the disks."""
    disks = [{"disk": disk.disk, "size_gib": disk.size_gib} for disk in properties.disks if disk.size_gib]
    return {"disk_gib": properties.disk_gib, **({"disks": disks} if disks else {})}


def bridge_of(properties: VmProperties, settings: PlanSettings) -> str:
    """Return the bridge of the first NIC."""
    return properties.network.bridge or settings.bridge


def os_template(name: str, known: Mapping[str, str]) -> str:
    """Return the volume of a container's OS template. Raises JobError NOT_FOUND."""
    if ":" in name:
        return name
    if name not in known:
        named = ", ".join(sorted(known)) or "none"
        raise JobError(ErrorCode.NOT_FOUND, f"no OS template is called {name} (PROXMOX_OS_TEMPLATES has: {named})")
    return known[name]


def describe(service_name: str) -> str:
    """Return the service's name as one printable line that is not a marker: it must not claim another service's VM."""
    printable = "".join(char if char.isprintable() else " " for char in service_name)
    return MARKER_BEGINS.sub("smith-uid ", " ".join(printable.split()))[:MAX_DESCRIPTION_LENGTH]


def _properties_of(request: RunRequest) -> VmProperties:
    properties = read_properties(request.properties)
    if properties.kind != request.kind:
        raise JobError(ErrorCode.INVALID_REQUEST, f"the guest is of kind {request.kind}, which cannot be changed")
    return properties


def _configuration(properties: VmProperties, request: RunRequest) -> dict[str, Any]:
    """Return the members that `create` and `update` have in common."""
    found: dict[str, Any] = {
        "cores": properties.cores,
        "memory_mib": properties.memory_mib,
        "disk_gib": properties.disk_gib,
        "description": describe(request.service_name),
        **_hardware(properties),
    }
    return found | ({"tags": list(properties.tags)} if request.kind == GuestKind.QEMU else {})


def _differs(request: RunRequest, name: str) -> bool:
    return name in request.properties and request.properties.get(name) != request.previous_properties.get(name)


def _source(properties: VmProperties, request: RunRequest, settings: PlanSettings) -> dict[str, Any]:
    """Return the source of the guest: a template, an ISO image, an OS template, or nothing."""
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
    """Return the optional hardware properties that the service has."""
    asked = {name: getattr(properties, name) for name in HARDWARE}
    lists = {
        "boot_order": list(properties.boot_order),
        "disks": [disk.model_dump(exclude_none=True) for disk in properties.disks],
    }
    return {name: value for name, value in (asked | lists).items() if value not in (None, [])}


def _network(properties: VmProperties, settings: PlanSettings) -> dict[str, Any]:
    network = properties.network
    found = {
        **network.model_dump(exclude_none=True),
        "bridge": bridge_of(properties, settings),
        "dns_servers": list(network.dns_servers),
        "search_domains": list(network.search_domains),
    }
    return {name: value for name, value in found.items() if value != "" and (value or name != "search_domains")}


def _nics(properties: VmProperties) -> list[dict[str, Any]]:
    return [nic.model_dump(include=set(NicProperties.model_fields), exclude_none=True) for nic in properties.networks]


def _cloud_init(properties: VmProperties) -> dict[str, Any]:
    found = {
        "user": properties.ci_user,
        "password": properties.ci_password,
        "ssh_public_keys": list(properties.ssh_public_keys),
        "vendor_snippet": properties.vendor_snippet,
    }
    return {name: value for name, value in found.items() if value}
