# SPDX-License-Identifier: Apache-2.0
"""Makes the requested configuration of a container in Proxmox's format. All functions are pure.

It supports what the module community.proxmox.proxmox can do: create from an OS template, cores, memory, swap, NICs,
name server, search domain, onboot. No module of the collection resizes or moves a container's volumes.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import smith_hardware

OS_TEMPLATE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*:vztmpl/[A-Za-z0-9_][A-Za-z0-9_.+-]*")
#: The first major version of community.proxmox whose module needs the console mode in an update.
CMODE_REQUIRED_SINCE = 2
#: Members that apply to virtual machines only.
VM_ONLY = (
    *("template_vmid", "template", "iso", "blank", "sockets", "cpu_type", "balloon_mib", "boot_order", "guest_agent"),
    *("disks", "protection"),
)


def wanted(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return the requested parameters of community.proxmox.proxmox, including those that do not differ."""
    network, sizes = vm.get("network") or {}, {}
    for parameter, member in (("cores", "cores"), ("memory", "memory_mib")):
        if vm.get(member):
            sizes[parameter] = int(vm[member])
    if vm.get("swap_mib") is not None:
        sizes["swap"] = int(vm["swap_mib"])
    options = {"onboot": smith_hardware.is_yes(vm["onboot"])} if vm.get("onboot") is not None else {}
    return {
        **sizes,
        **options,
        "netif": interfaces(found, vm),
        "nameserver": " ".join(str(server) for server in network.get("dns_servers") or []) or None,
        "searchdomain": " ".join(str(domain) for domain in network.get("search_domains") or []) or None,
    }


def interfaces(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, str]:
    """Return the netN values of the requested NICs."""
    config, values = found["config"], {}
    for number, nic in smith_hardware.nics(vm).items():
        value = interface(str(config.get(f"net{number}", "")), number, nic)
        if value:
            values[f"net{number}"] = value
    return values


def interface(current: str, number: int, nic: dict[str, Any]) -> str:
    """Return a container's netN value with the requested changes; empty if nothing is requested."""
    is_requested = any(nic.get(key) not in (None, "") for key in (*smith_hardware.LINK, "mac", "mode", "ipv6_mode"))
    if not is_requested:
        return ""
    parts = dict(part.partition("=")[::2] for part in current.split(",") if part) or {"name": f"eth{number}"}
    if nic.get("mac"):
        parts["hwaddr"] = str(nic["mac"]).upper()
    smith_hardware.set_link(parts, nic)
    smith_hardware.set_addresses(parts, nic)
    return ",".join(f"{key}={value}" for key, value in parts.items())


def problem(found: dict[str, Any], vm: dict[str, Any], is_create: bool) -> str:
    """Return why the request is impossible."""
    return next(_problems(found, vm, is_create), "")


def _problems(found: dict[str, Any], vm: dict[str, Any], is_create: bool) -> Iterator[str]:
    if not is_create and any((vm.get("cloud_init") or {}).values()):
        yield "INVALID_REQUEST: a container's login can only be set at its creation"
    for member in VM_ONLY:
        if vm.get(member) not in (None, "", [], 0, False):
            yield f"INVALID_REQUEST: {member} is not supported for containers"
    if vm.get("tags"):
        yield "INVALID_REQUEST: tags are not supported for containers"
    for number, nic in smith_hardware.nics(vm).items():
        for mode, cidr in (("mode", "ipv4_cidr"), ("ipv6_mode", "ipv6_cidr")):
            if nic.get(mode) == "static" and not nic.get(cidr):
                yield f"INVALID_REQUEST: NIC {number} {mode} static needs {cidr}"
    if any("PRIVATE KEY" in str(key) for key in (vm.get("cloud_init") or {}).get("ssh_public_keys") or []):
        yield "INVALID_REQUEST: ssh_public_keys holds a private key"
    yield from _volume_problems(found, vm) if found["exists"] else _template_problems(vm)


def console_mode(found: dict[str, Any]) -> str:
    """Return the console mode that an update must pass, so that it does not change; or an empty text.

    community.proxmox 2.0 sends `default` if none is given, which Proxmox refuses; older versions lack the parameter.
    """
    return str(found["config"].get("cmode") or "tty") if _collection_major() >= CMODE_REQUIRED_SINCE else ""


@functools.cache
def _collection_major() -> int:
    folder = Path(next(iter(importlib.import_module("ansible_collections.community.proxmox").__path__)))
    manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
    return int(manifest["collection_info"]["version"].partition(".")[0])


def _template_problems(vm: dict[str, Any]) -> Iterator[str]:
    if not OS_TEMPLATE.fullmatch(str(vm.get("os_template") or "")):
        yield "INVALID_REQUEST: a container needs os_template of the form storage:vztmpl/file"
    for member in ("node", "storage", "disk_gib"):
        if not vm.get(member):
            yield f"INVALID_REQUEST: a container needs {member}"


def _volume_problems(found: dict[str, Any], vm: dict[str, Any]) -> Iterator[str]:
    if vm.get("disk_gib") and int(vm["disk_gib"]) != found["disk_gib"]:
        yield (
            f"INVALID_REQUEST: a container's root volume cannot be resized: it has {found['disk_gib']} GiB, "
            f"{vm['disk_gib']} GiB are requested"
        )


class FilterModule:
    """Required by Ansible in every filter file; the filters are in smith.py."""

    def filters(self) -> dict[str, Any]:
        """Return no filters."""
        return {}
