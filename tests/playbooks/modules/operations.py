"""The operations for which our action plugins use modules of community.proxmox: parameters, requests and effects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import container
from guests import (
    SNAPSHOT,
    Guest,
    Vm,
    cores,
    disk,
    first_disk,
    has_snapshot,
    is_absent,
    is_marked,
    is_running,
    is_stopped,
    marker,
    new_container,
    new_vm,
    running_container,
    running_vm,
    stopped_container,
    stopped_vm,
    vm_changed_after_its_snapshot,
    vm_on_shared_storage,
)
from module_runner import ModuleRunner
from play_bench import Bench

ADDED_DISK_GIB = 4


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of a module."""

    module: str
    name: str
    prepare: Callable[[Bench, ModuleRunner], Vm]
    parameters: Callable[[Bench, Vm], Mapping[str, Any]]
    #: Method and path (with wildcards) of the request that makes the change. Versions of a module may differ in the
    #: method: `POST|PUT /path`.
    request: str
    #: Whether the guest (None: it does not exist) is as requested.
    is_done: Callable[[Bench, Vm, Guest], bool]
    is_for_lab: bool = True

    @property
    def id(self) -> str:
        return f"{self.module}-{self.name}"

    @property
    def requests(self) -> list[str]:
        methods, path = self.request.split(" ")
        return [f"{method} {path}" for method in methods.split("|")]


def as_parameters(*, is_for_lab: bool = True) -> list[Any]:
    """Return the operations as parameters of a test; those that a lab can run have the mark `lab`."""
    return [
        pytest.param(each, id=each.id, marks=[pytest.mark.lab] if is_for_lab and each.is_for_lab else [])
        for each in OPERATIONS
    ]


# ---------------------------------------------------------------------- the operations

OPERATIONS = (
    Operation(
        module="proxmox_kvm",
        name="clone",
        prepare=new_vm,
        parameters=lambda bench, vm: {
            **{"state": "present", "clone": "template", "vmid": bench.place.template, "newid": vm["vmid"]},
            **{"name": vm["name"], "node": bench.place.node, "full": True, "timeout": bench.place.timeout_s},
        },
        request="POST /nodes/*/qemu/*/clone",
        is_done=lambda bench, vm, guest: guest is not None and guest["name"] == vm["name"],
        is_for_lab=False,  # a clone has no marker, by which the lab's guests are recognized when they are deleted
    ),
    Operation(
        module="proxmox_kvm",
        name="create",
        prepare=new_vm,
        parameters=lambda bench, vm: {
            **{"state": "present", "vmid": vm["vmid"], "name": vm["name"], "node": bench.place.node},
            **{"description": marker(vm), "cores": 2, "memory": 512, "timeout": bench.place.timeout_s},
        },
        request="POST /nodes/*/qemu",
        is_done=is_marked,
    ),
    Operation(
        module="proxmox_kvm",
        name="configure",
        prepare=stopped_vm,
        parameters=lambda bench, vm: {
            **{"state": "present", "update": True, "vmid": vm["vmid"], "node": bench.place.node, "cores": 4},
        },
        request="PUT /nodes/*/qemu/*/config",
        is_done=lambda bench, vm, guest: cores(guest) == 4,
    ),
    Operation(
        module="proxmox_kvm",
        name="start",
        prepare=stopped_vm,
        parameters=lambda bench, vm: {"state": "started", "vmid": vm["vmid"], "timeout": bench.place.timeout_s},
        request="POST /nodes/*/qemu/*/status/start",
        is_done=is_running,
    ),
    Operation(
        module="proxmox_kvm",
        name="stop",
        prepare=running_vm,
        parameters=lambda bench, vm: {
            **{"state": "stopped", "vmid": vm["vmid"], "force": True, "timeout": bench.place.timeout_s}
        },
        request="POST /nodes/*/qemu/*/status/shutdown",
        is_done=is_stopped,
    ),
    Operation(
        module="proxmox_kvm",
        name="restart",
        prepare=running_vm,
        parameters=lambda bench, vm: {"state": "restarted", "vmid": vm["vmid"], "timeout": bench.place.timeout_s},
        request="POST /nodes/*/qemu/*/status/re*",
        is_done=is_running,
    ),
    Operation(
        module="proxmox_kvm",
        name="migrate",
        prepare=vm_on_shared_storage,
        parameters=lambda bench, vm: {
            **{"migrate": True, "vmid": vm["vmid"], "node": bench.place.second_node, "timeout": bench.place.timeout_s}
        },
        request="POST /nodes/*/qemu/*/migrate",
        is_done=lambda bench, vm, guest: guest is not None and guest["node"] == bench.place.second_node,
    ),
    Operation(
        module="proxmox_kvm",
        name="absent",
        prepare=stopped_vm,
        parameters=lambda bench, vm: {"state": "absent", "vmid": vm["vmid"], "timeout": bench.place.timeout_s},
        request="DELETE /nodes/*/qemu/*",
        is_done=is_absent,
    ),
    Operation(
        module="proxmox_disk",
        name="add",
        prepare=stopped_vm,
        parameters=lambda bench, vm: {
            **{"state": "present", "vmid": vm["vmid"], "disk": "scsi1", "size": ADDED_DISK_GIB},
            **{"storage": bench.place.storage, "timeout": bench.place.timeout_s},
        },
        request="POST|PUT /nodes/*/qemu/*/config",
        is_done=lambda bench, vm, guest: f"size={ADDED_DISK_GIB}G" in disk(guest, "scsi1"),
    ),
    Operation(
        module="proxmox_disk",
        name="move",
        prepare=stopped_vm,
        parameters=lambda bench, vm: {
            **{"state": "moved", "vmid": vm["vmid"], "disk": first_disk(bench, vm), "delete_moved": True},
            **{"target_storage": bench.place.other_storage, "timeout": bench.place.timeout_s},
        },
        request="POST /nodes/*/qemu/*/move_disk",
        is_done=lambda bench, vm, guest: disk(guest, first_disk(bench, vm)).startswith(f"{bench.place.other_storage}:"),
        is_for_lab=False,  # a lab names one storage
    ),
    Operation(
        module="proxmox_disk",
        name="grow",
        prepare=stopped_vm,
        parameters=lambda bench, vm: {
            **{"state": "resized", "vmid": vm["vmid"], "disk": first_disk(bench, vm)},
            **{"size": f"{bench.place.disk_gib + 2}G", "timeout": bench.place.timeout_s},
        },
        request="PUT /nodes/*/qemu/*/resize",
        is_done=lambda bench, vm, guest: f"size={bench.place.disk_gib + 2}G" in disk(guest, first_disk(bench, vm)),
    ),
    Operation(
        module="proxmox_snap",
        name="create",
        prepare=stopped_vm,
        parameters=lambda bench, vm: {
            **{"state": "present", "vmid": vm["vmid"], "snapname": SNAPSHOT, "timeout": bench.place.timeout_s}
        },
        request="POST /nodes/*/qemu/*/snapshot",
        is_done=has_snapshot,
    ),
    Operation(
        module="proxmox_snap",
        name="rollback",
        prepare=vm_changed_after_its_snapshot,
        parameters=lambda bench, vm: {
            **{"state": "rollback", "vmid": vm["vmid"], "snapname": SNAPSHOT, "timeout": bench.place.timeout_s}
        },
        request="POST /nodes/*/qemu/*/snapshot/*/rollback",
        is_done=lambda bench, vm, guest: cores(guest) == 2,
    ),
    Operation(
        module="proxmox",
        name="create",
        prepare=new_container,
        parameters=lambda bench, vm: {
            **{"state": "present", "update": False, "vmid": vm["vmid"], "node": vm["node"], "hostname": vm["name"]},
            **{"ostemplate": bench.place.os_template, "disk": f"{bench.place.storage}:4", "cores": 1, "memory": 512},
            **{"storage": bench.place.storage, "description": marker(vm), "unprivileged": True},
            **{"timeout": bench.place.timeout_s},
        },
        request="POST /nodes/*/lxc",
        is_done=is_marked,
    ),
    Operation(
        module="proxmox",
        name="configure",
        prepare=stopped_container,
        parameters=lambda bench, vm: {
            **{"state": "present", "update": True, "vmid": vm["vmid"], "node": bench.place.node},
            **{"hostname": vm["name"], "memory": 1024, "timeout": bench.place.timeout_s},
            "cmode": container.console_mode(bench.guest(vm)) or None,
        },
        request="PUT /nodes/*/lxc/*/config",
        is_done=lambda bench, vm, guest: guest is not None and int(guest["config"]["memory"]) == 1024,
    ),
    Operation(
        module="proxmox",
        name="start",
        prepare=stopped_container,
        parameters=lambda bench, vm: {"state": "started", "vmid": vm["vmid"], "timeout": bench.place.timeout_s},
        request="POST /nodes/*/lxc/*/status/start",
        is_done=is_running,
    ),
    Operation(
        module="proxmox",
        name="stop",
        prepare=running_container,
        parameters=lambda bench, vm: {
            **{"state": "stopped", "vmid": vm["vmid"], "force": True, "timeout": bench.place.timeout_s}
        },
        request="POST /nodes/*/lxc/*/status/shutdown",
        is_done=is_stopped,
    ),
    Operation(
        module="proxmox",
        name="absent",
        prepare=stopped_container,
        parameters=lambda bench, vm: {"state": "absent", "vmid": vm["vmid"], "timeout": bench.place.timeout_s},
        request="DELETE /nodes/*/lxc/*",
        is_done=is_absent,
    ),
)
