# SPDX-License-Identifier: Apache-2.0
"""Translates the requested configuration of a container to parameters of the module community.proxmox.proxmox.

`vm` is the request (docs/actions.md). `facts` contains the container's status, its configuration and other data, as
read from Proxmox.
The module can create a container from an OS template, and set its cores, memory, swap, NICs, name servers, search
domains and `onboot`. No module of community.proxmox resizes or moves a container's volumes, so such a request is
refused. Containers have no cloud-init, but the member `cloud_init` of `vm` contains the container's login: its password
and SSH keys. Functions of `cloud_init.py` check the login, and put the IP addresses into the parameters of the NICs.
No function here sends an HTTP request.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import cloud_init, nics
from .addresses import address_problems
from .request_values import is_yes

#: Matches the volume of an OS template, such as local:vztmpl/debian-12.tar.zst.
OS_TEMPLATE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*:vztmpl/[A-Za-z0-9_][A-Za-z0-9_.+-]*")
#: The first major version of community.proxmox that needs the console mode (`cmode`) for an update of a container.
CMODE_REQUIRED_SINCE = 2
#: The members of the request that are only for virtual machines. `blank` requests a VM with empty disks.
VM_ONLY_MEMBERS = (
    *("template_vmid", "template", "iso", "blank", "sockets", "cpu_type", "balloon_mib", "boot_order", "guest_agent"),
    *("disks", "protection"),
)


def requested_parameters(facts: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return all requested parameters of community.proxmox.proxmox, even if the container already has their values.

    A parameter that is None is not requested.
    """
    network, resources = vm.get("network") or {}, {}
    for parameter, member in (("cores", "cores"), ("memory", "memory_mib")):
        if vm.get(member):
            resources[parameter] = int(vm[member])
    if vm.get("swap_mib") is not None:
        resources["swap"] = int(vm["swap_mib"])
    options = {"onboot": is_yes(vm["onboot"])} if vm.get("onboot") is not None else {}
    return {
        **resources,
        **options,
        "netif": requested_nic_values(facts, vm),
        "nameserver": " ".join(str(server) for server in network.get("dns_servers") or []) or None,
        "searchdomain": " ".join(str(domain) for domain in network.get("search_domains") or []) or None,
    }


def requested_nic_values(facts: dict[str, Any], vm: dict[str, Any]) -> dict[str, str]:
    """Return the requested values of the parameters `net0`, `net1` and so on, one for each requested NIC."""
    config, values = facts["config"], {}
    for number, nic in nics.requested_nics(vm).items():
        value = nic_value(str(config.get(f"net{number}", "")), number, nic)
        if value:
            values[f"net{number}"] = value
    return values


def nic_value(current_value: str, number: int, nic: dict[str, Any]) -> str:
    """Return the value of NIC `number` with the requested changes; empty if the request contains no change.

    `current_value` is the NIC's value in the configuration, and `nic` contains the requested members of this NIC.
    BRIDGE_PORT_MEMBERS are `bridge`, `vlan`, `firewall` and `rate_mbps`.
    """
    is_requested = any(
        nic.get(key) not in (None, "") for key in (*nics.BRIDGE_PORT_MEMBERS, "mac", "mode", "ipv6_mode")
    )
    if not is_requested:
        return ""
    options = dict(part.partition("=")[::2] for part in current_value.split(",") if part) or {"name": f"eth{number}"}
    if nic.get("mac"):
        options["hwaddr"] = str(nic["mac"]).upper()
    nics.set_bridge_port(options, nic)
    cloud_init.set_addresses(options, nic)
    return ",".join(f"{key}={value}" for key, value in options.items())


def request_problem(facts: dict[str, Any], vm: dict[str, Any], is_create: bool) -> str:
    """Return why the request is impossible, as `CODE: reason`; an empty text if it is possible.

    `is_create` is True for a `create`, and False for an `update`. In a `create`, `facts["exists"]` is True
    if an earlier attempt has created the container.
    """
    return next(filter(None, _problems(facts, vm, is_create)), "")


def _problems(facts: dict[str, Any], vm: dict[str, Any], is_create: bool) -> Iterator[str]:
    if not is_create and any((vm.get("cloud_init") or {}).values()):
        yield "INVALID_REQUEST: a container's login can only be set at its creation"
    for member in VM_ONLY_MEMBERS:
        if vm.get(member) not in (None, "", [], 0, False):
            yield f"INVALID_REQUEST: {member} is not supported for containers"
    if vm.get("tags"):
        yield "INVALID_REQUEST: tags are not supported for containers"
    yield from nics.nic_problems(facts, vm)
    yield from address_problems(vm)
    yield from cloud_init.login_problems(vm)
    yield from _volume_problems(facts, vm) if facts["exists"] else _creation_problems(vm)


def console_mode(facts: dict[str, Any]) -> str:
    """Return the current console mode, which an update must pass to the module.

    Without this parameter, community.proxmox 2.0 sends the value `default`, which Proxmox refuses. Older versions of
    the collection do not have the parameter: if one of them is installed, '' is returned.
    """
    return str(facts["config"].get("cmode") or "tty") if _collection_major_version() >= CMODE_REQUIRED_SINCE else ""


@functools.cache
def _collection_major_version() -> int:
    folder = Path(next(iter(importlib.import_module("ansible_collections.community.proxmox").__path__)))
    manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
    return int(manifest["collection_info"]["version"].partition(".")[0])


def _creation_problems(vm: dict[str, Any]) -> Iterator[str]:
    if not OS_TEMPLATE.fullmatch(str(vm.get("os_template") or "")):
        yield "INVALID_REQUEST: a container needs os_template of the form storage:vztmpl/file"
    for member in ("node", "storage", "disk_gib"):
        if not vm.get(member):
            yield f"INVALID_REQUEST: a container needs {member}"


def _volume_problems(facts: dict[str, Any], vm: dict[str, Any]) -> Iterator[str]:
    if vm.get("disk_gib") and int(vm["disk_gib"]) != facts["disk_gib"]:
        yield (
            f"INVALID_REQUEST: a container's root volume cannot be resized: it has {facts['disk_gib']} GiB, "
            f"{vm['disk_gib']} GiB are requested"
        )
