# SPDX-License-Identifier: Apache-2.0
"""Translates the requested hardware of a VM to parameters of the module proxmox_kvm.

`vm` is the request (docs/actions.md). `facts` contains the status, the configuration and other data of the VM, as
read from Proxmox. `source` contains the facts of the VM or, before a clone, of the template. Before a VM is created
without a template, `source` contains an empty configuration. A value that the request does not contain is neither
changed nor removed. All functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .cloud_init import login_and_network_problems, network_parameters
from .disks import CDROM, disk_problems, growth_problem, requested_disks
from .nics import nic_problems, requested_nic_values
from .request_values import is_yes

#: Matches the volume of an ISO image, such as local:iso/debian-12.iso.
ISO_VOLUME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*:iso/[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def requested_parameters(facts: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return all requested hardware and network parameters of proxmox_kvm, even if the VM already has their values.

    If the VM already has a requested value, the value is returned in the form in which the configuration contains it.
    So the caller can compare it with the configuration by `==`.
    """
    return {
        **_size_parameters(vm),
        **_option_parameters(facts, vm),
        "net": requested_nic_values(facts, vm),
        **network_parameters(facts, vm),
    }


def request_problem(source: dict[str, Any], vm: dict[str, Any], is_created_without_template: bool = False) -> str:
    """Return why the request is impossible, as `CODE: reason`; an empty text if it is possible.

    `is_created_without_template` is true if a VM without a template is created. The member `only_grows` of `vm` marks
    the request of a resize, which may only grow existing disks, not add or move a disk.
    """
    return next(filter(None, _problems(source, vm, is_created_without_template)), "")


def _problems(source: dict[str, Any], vm: dict[str, Any], is_created_without_template: bool) -> Iterator[str]:
    if vm.get("only_grows"):
        yield growth_problem(source, vm)
    yield from disk_problems(source, vm, is_created_without_template)
    yield from nic_problems(source, vm)
    yield from login_and_network_problems(source, vm)
    yield _balloon_problem(source, vm)
    devices = {*source["config"], *requested_nic_values(source, vm)} | (
        {*requested_disks(source, vm), CDROM} if is_created_without_template else set()
    )
    for device in vm.get("boot_order") or []:
        if device not in devices:
            yield (
                f"INVALID_REQUEST: boot_order names {device}, but VM {source['vmid']} has no such device: correct the "
                "name, or first add the device by another request"
            )


def _balloon_problem(source: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return a problem if the minimum memory for ballooning is larger than the memory; '' if not.

    Proxmox would refuse such values. If the request contains no minimum, the current minimum of the VM or the template
    is checked.
    """
    if vm.get("balloon_mib") is None and not vm.get("memory_mib"):
        return ""
    requested_balloon, current_balloon = vm.get("balloon_mib"), source["config"].get("balloon")
    balloon_mib = int((current_balloon if requested_balloon is None else requested_balloon) or 0)
    memory_mib = int(vm.get("memory_mib") or source.get("memory_mib") or 0)
    if not memory_mib or balloon_mib <= memory_mib:
        return ""
    owner = "template" if source["is_template"] else "VM"
    origin = f" (the current value of the {owner})" if requested_balloon is None else ""
    return (
        f"INVALID_REQUEST: balloon_mib {balloon_mib}{origin} is more than memory_mib {memory_mib}: request less "
        "balloon_mib or more memory_mib"
    )


def _size_parameters(vm: dict[str, Any]) -> dict[str, Any]:
    cores, sockets, memory_mib, balloon_mib = (
        vm.get(name) for name in ("cores", "sockets", "memory_mib", "balloon_mib")
    )
    sizes: dict[str, Any] = {}
    if cores:  # if the request contains no `sockets`, `cores` is the total, so the VM gets one socket
        sizes |= {"cores": int(cores), "sockets": int(sockets or 1)}
    elif sockets:
        sizes["sockets"] = int(sockets)
    if memory_mib:
        sizes["memory"] = int(memory_mib)
    if balloon_mib is not None:
        sizes["balloon"] = int(balloon_mib)
    return sizes


def _option_parameters(facts: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    config = facts["config"]
    options: dict[str, Any] = {key: is_yes(vm[key]) for key in ("onboot", "protection") if vm.get(key) is not None}
    if vm.get("cpu_type"):
        options["cpu"] = _replace_first_value(str(config.get("cpu", "")), str(vm["cpu_type"]), "cputype")
    if vm.get("guest_agent") is not None:
        options["agent"] = _guest_agent_option(str(config.get("agent", "")), is_yes(vm["guest_agent"]))
    if vm.get("boot_order"):
        options["boot"] = "order=" + ";".join(str(device) for device in vm["boot_order"])
    return options


def _replace_first_value(property_string: str, value: str, name: str) -> str:
    """Return a property string of Proxmox, such as `host,flags=+aes`, with its first value replaced.

    `name` is the key of the first value; Proxmox may omit this key. If the first value is already `value`, the
    text is not changed.
    """
    first, *rest = property_string.split(",")
    return property_string if first.removeprefix(f"{name}=") == value else ",".join([value, *rest])


def _guest_agent_option(current_value: str, is_on: bool) -> str:
    """Return the option `agent` with the guest agent switched on or off. The other parts of the value are kept."""
    first, *rest = current_value.split(",")
    if is_yes(first.removeprefix("enabled=")) is is_on:
        return current_value
    return ",".join([f"enabled={int(is_on)}", *rest])
