# SPDX-License-Identifier: Apache-2.0
"""Decides whether a guest can be created, and computes the parameters of the module that creates it.

`vm` is the request: the extra var of every playbook (docs/actions.md). `facts` contains the status, the configuration
and other data of a guest, as read from Proxmox. `facts["template"]` contains the facts of the template to clone, and
under `problem` the reason why it cannot be cloned. `source` contains the facts of the guest or, before it is created,
of the template. A function whose name ends in `_problem` returns `CODE: reason`, or an empty text if there is no
problem. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import allowed, container, disks, hardware
from .configuration import differing_parameters
from .identity import kind_of
from .request_values import is_yes


def request_problem(facts: dict[str, Any], vm: dict[str, Any], is_create: bool = True) -> str:
    """Return why a `create` or an `update` is impossible. The action plugins call this before the first change.

    `is_create` is True for a `create`, and False for an `update`. The guest of a `create` already exists if an earlier
    attempt has created it.

    `allowed.request_problem` checks that the request names only bridges, VLANs, storages and tags that the provider
    offers. `hardware.request_problem` (for a VM) and `container.request_problem` check, among others, the requested
    disks, network interfaces and login.
    """
    # Without a template, `source` contains the empty facts of the guest that does not exist.
    source = facts if facts["exists"] else facts.get("template") or facts
    return allowed.request_problem(source, vm, is_new=not facts["exists"]) or _guest_problem(facts, vm, is_create)


def _guest_problem(facts: dict[str, Any], vm: dict[str, Any], is_create: bool) -> str:
    if kind_of(vm) == "lxc":
        return container.request_problem(facts, vm, is_create)
    if not facts["exists"] and is_created_without_template(vm):
        return _problem_without_template(vm) or hardware.request_problem(facts, vm, is_created_without_template=True)
    source = facts if facts["exists"] else facts["template"]
    if not facts["exists"] and source.get("problem"):
        return str(source["problem"])
    if not facts["exists"] and not source:
        return "INVALID_REQUEST: a create needs one of template_vmid, template, iso and blank"
    if not facts["exists"] and not source["is_template"]:
        return f"NOT_FOUND: VM {source['vmid']} is not a template"
    return hardware.request_problem(source, vm)


def is_created_without_template(vm: dict[str, Any]) -> bool:
    """Return True if the VM is created without a template. Its disks are then empty.

    The VM is installed from an ISO image (`iso`) or over the network (`blank`).
    """
    return bool(vm.get("iso") or is_yes(vm.get("blank", False)))


def _problem_without_template(vm: dict[str, Any]) -> str:
    if vm.get("template_vmid") or vm.get("template"):
        return "INVALID_REQUEST: template cannot be combined with iso or blank"
    if not vm.get("node"):
        return "INVALID_REQUEST: a VM without a template needs node"
    if vm.get("iso") and not hardware.ISO_VOLUME.fullmatch(str(vm["iso"])):
        return "INVALID_REQUEST: iso is not of the form storage:iso/file"
    return ""


def storages_of_new_disks(facts: dict[str, Any], vm: dict[str, Any]) -> set[str]:
    """Return the storages on which the disks of a VM without a template will be created.

    `disks.disk_module_parameters` returns the parameters of each necessary call of proxmox_disk. Here each call adds a
    disk, because the VM does not exist yet.
    """
    return {str(disk_to_add["storage"]) for disk_to_add in disks.disk_module_parameters(facts, vm)}


def creation_parameters(
    facts: dict[str, Any], vm: dict[str, Any], formats: Mapping[str, str | None] | None = None
) -> dict[str, Any]:
    """Return the parameters that create a container, or a VM without a template, including its marker and its disks.

    For a VM, these are parameters of the module proxmox_kvm; for a container, of the module `proxmox`. The VM boots
    from its first disk; while this disk is empty, it boots from the ISO image. `formats` contains the format of new
    disks, by storage. If a storage is missing there, or has the format None, Proxmox chooses the format. `facts` are
    the empty facts of a guest that does not exist; `differing_parameters` compares the request with them.
    """
    if kind_of(vm) == "lxc":
        return differing_parameters(facts, vm, is_create=True)
    disks_to_add = disks.disk_module_parameters(facts, vm)
    drives: dict[str, dict[str, str]] = {bus: {} for bus in ("scsi", "virtio", "sata", "ide")}
    for disk_to_add in disks_to_add:
        name, storage = disk_to_add["disk"], disk_to_add["storage"]
        disk_format = (formats or {}).get(storage)
        option = f",format={disk_format}" if disk_format else ""
        drives[name.rstrip("0123456789")][name] = f"{storage}:{disk_to_add['size']}{option}"
    boot_order = [disks_to_add[0]["disk"]] if disks_to_add else []
    if vm.get("iso"):
        drives["ide"][disks.CDROM] = f"{vm['iso']},media=cdrom"
        boot_order.append(disks.CDROM)
    boot = {"boot": "order=" + ";".join(boot_order)} if boot_order else {}
    drives_by_used_bus = {bus: drives_of_bus for bus, drives_of_bus in drives.items() if drives_of_bus}
    return {**boot, **differing_parameters(facts, vm, is_create=True), **drives_by_used_bus}
