# SPDX-License-Identifier: Apache-2.0
"""Translates the requested disks of a VM to parameters of the module proxmox_disk.

`vm` is the request (docs/actions.md). `facts` contains the status, the configuration and other data of the guest, as
read from Proxmox. `source` contains the facts of the VM or, before a clone, of the template. Before a VM is created
without a template, `source` contains no disks. Functions with the parameter `facts` also accept `source`. A disk
that the request does not contain is neither changed nor removed. All functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

GIB = 1024**3
#: Matches the name of a VM's disk.
DISK_NAME = re.compile(r"scsi([12]?\d|30)|virtio(1[0-5]|\d)|sata[0-5]|ide[0-3]")
#: Name of the first disk that is added to a VM without disks.
FIRST_DISK = "scsi0"
#: The drive that contains the ISO image of a new VM.
CDROM = "ide2"


def requested_disks(facts: dict[str, Any], vm: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the requested size and storage of each disk, by the disk's name.

    In the request, `disk_gib` is the size of the first disk, and `disks` is a list of disks with their names. The first
    disk is the boot disk (`facts["disk"]`) or, if the VM has no disk, FIRST_DISK. Size 0 means that no size is
    requested, and an empty storage means that no storage is requested.
    """
    disks_by_name: dict[str, dict[str, Any]] = {}
    if vm.get("disk_gib"):
        disks_by_name[facts.get("disk") or FIRST_DISK] = {"size_gib": int(vm["disk_gib"]), "storage": ""}
    for disk in vm.get("disks") or []:
        name = str(disk.get("disk"))
        size_from_disk_gib = disks_by_name.get(name, {}).get("size_gib")  # None unless this is the first disk
        size_gib = int(disk.get("size_gib") or size_from_disk_gib or 0)
        disks_by_name[name] = {"size_gib": size_gib, "storage": str(disk.get("storage") or "")}
    return disks_by_name


def disk_module_parameters(facts: dict[str, Any], vm: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters of each call of proxmox_disk that is necessary to add, move or grow the requested disks."""
    steps: list[dict[str, Any]] = []
    for name, requested_disk in requested_disks(facts, vm).items():
        existing_disk = facts["disks"].get(name)
        size_gib, storage = requested_disk["size_gib"], requested_disk["storage"]
        if existing_disk is None:
            steps.append(
                {"disk": name, "state": "present", "storage": storage or default_storage(facts, vm), "size": size_gib}
            )
            continue
        if storage and storage != existing_disk["storage"]:
            steps.append({"disk": name, "state": "moved", "storage": storage})
        if size_gib * GIB > existing_disk["bytes"]:
            steps.append({"disk": name, "state": "resized", "size": f"{size_gib}G"})
    return steps


def describe_disk(disk: dict[str, Any]) -> str:
    """Return a text that describes an existing disk to operators."""
    return f"{-(-disk['bytes'] // GIB)}G on {disk['storage']}"


def describe_disk_step(step: dict[str, Any]) -> str:
    """Return a text that describes an item of `disk_module_parameters` to operators."""
    if step["state"] == "moved":
        return f"move to {step['storage']}"
    return f"add {step['size']}G on {step['storage']}" if step["state"] == "present" else step["size"]


def default_storage(facts: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return the storage of a new disk for which no storage is requested.

    It is the storage in the request for the whole VM, or else the storage of the first disk.
    """
    return str(vm.get("storage") or facts["disks"].get(facts.get("disk"), {}).get("storage", ""))


def disk_problems(source: dict[str, Any], vm: dict[str, Any], is_created_without_template: bool) -> Iterator[str]:
    """Yield the problems of the requested disks. Some of the yielded texts may be empty."""
    listed_names = [str(disk.get("disk")) for disk in vm.get("disks") or []]
    if vm.get("disk_gib") and not source.get("disk") and not is_created_without_template:
        yield f"INVALID_REQUEST: VM {source['vmid']} has no disk to resize to {vm['disk_gib']} GiB"
    if len(set(listed_names)) < len(listed_names):
        yield "INVALID_REQUEST: disks contains the same disk twice"
    yield _size_contradiction_problem(source, vm)
    for name, requested_disk in requested_disks(source, vm).items():
        yield _disk_problem(source, vm, name, requested_disk)


def _size_contradiction_problem(source: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return a problem if `disk_gib` and `disks` request different sizes of the first disk; '' if not."""
    first_disk, disk_gib = source.get("disk") or FIRST_DISK, int(vm.get("disk_gib") or 0)
    sizes = [int(disk.get("size_gib") or 0) for disk in vm.get("disks") or [] if str(disk.get("disk")) == first_disk]
    if disk_gib and any(size not in (0, disk_gib) for size in sizes):
        return f"INVALID_REQUEST: disk_gib is {disk_gib}, but disks has {sizes[0]} GiB for the same disk, {first_disk}"
    return ""


def growth_problem(source: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return why a resize is impossible, or ''. A resize may only grow disks, not add or move them."""
    if not requested_disks(source, vm):
        return "INVALID_REQUEST: a resize needs disk_gib or disks"
    disks_to_add_or_move = [step["disk"] for step in disk_module_parameters(source, vm) if step["state"] != "resized"]
    if not disks_to_add_or_move:
        return ""
    disk = disks_to_add_or_move[0]
    return f"INVALID_REQUEST: a resize only grows disks, but {disk} does not exist or is on another storage"


def _disk_problem(source: dict[str, Any], vm: dict[str, Any], name: str, requested_disk: dict[str, Any]) -> str:
    existing_disk, size_gib = source["disks"].get(name), requested_disk["size_gib"]
    if not DISK_NAME.fullmatch(name):
        return f"INVALID_REQUEST: {name} is not a disk name; disk names are scsi0-30, virtio0-15, sata0-5 and ide0-3"
    if existing_disk is None and name in source["config"]:
        return f"INVALID_REQUEST: {name} is a CD-ROM or the cloud-init drive, not a disk"
    if existing_disk is None and not size_gib:
        return f"INVALID_REQUEST: the new disk {name} needs size_gib"
    if existing_disk is None and not (requested_disk["storage"] or default_storage(source, vm)):
        return f"INVALID_REQUEST: the new disk {name} needs a storage"
    if existing_disk is not None and size_gib and size_gib * GIB < existing_disk["bytes"]:
        owner_text = "template" if source["is_template"] else "VM"
        return (
            f"INVALID_REQUEST: a disk cannot shrink: the {owner_text}'s {name} has "
            f"{-(-existing_disk['bytes'] // GIB)} GiB, {size_gib} GiB are requested"
        )
    return ""
