"""Prepares guests for a module or an action plugin, and checks their state afterwards. On the stand-in and in a lab."""

from __future__ import annotations

import re
from typing import Any

from module_runner import ModuleRunner
from play_bench import Bench, needs

#: The variables of an action, as `Bench.vm` returns them.
Vm = dict[str, Any]
#: A guest at Proxmox as the stand-in describes it; None if it does not exist.
Guest = dict[str, Any] | None
SNAPSHOT = "before"

# ---------------------------------------------------------------------- preparation


def new_vm(bench: Bench, _modules: ModuleRunner) -> Vm:
    """Reserve a VMID for a VM that does not exist."""
    return bench.vm(node=bench.place.node, storage=bench.place.storage)


def stopped_vm(bench: Bench, _modules: ModuleRunner) -> Vm:
    return bench.add_vm()


def running_vm(bench: Bench, _modules: ModuleRunner) -> Vm:
    return bench.add_vm(status="running")


def vm_on_shared_storage(bench: Bench, _modules: ModuleRunner) -> Vm:
    needs(bench.place.second_node, "SECOND_NODE")
    vm = bench.add_vm(config={"scsi0": f"{bench.place.other_storage}:vm-1-disk-0,size=8G"})
    return {**vm, "target_node": bench.place.second_node}


def vm_changed_after_its_snapshot(bench: Bench, modules: ModuleRunner) -> Vm:
    vm = bench.add_vm()
    modules.run("proxmox_snap", state="present", vmid=vm["vmid"], snapname=SNAPSHOT, timeout=bench.place.timeout_s)
    modules.run("proxmox_kvm", state="present", update=True, vmid=vm["vmid"], node=bench.place.node, cores=6)
    assert cores(bench.guest(vm)) == 6
    return {**vm, "snapshot": SNAPSHOT}


def vm_to_back_up(bench: Bench, _modules: ModuleRunner) -> Vm:
    needs(bench.place.backup_storage, "BACKUP_STORAGE")
    return {**bench.add_vm(), "backup_storage": bench.place.backup_storage}


def new_container(bench: Bench, _modules: ModuleRunner) -> Vm:
    """Reserve a VMID for a container that does not exist."""
    needs(bench.place.os_template, "OS_TEMPLATE")
    place = bench.place
    return bench.container(node=place.node, storage=place.storage, os_template=place.os_template)


def stopped_container(bench: Bench, _modules: ModuleRunner) -> Vm:
    needs(bench.place.os_template, "OS_TEMPLATE")
    return bench.add_container()


def running_container(bench: Bench, _modules: ModuleRunner) -> Vm:
    needs(bench.place.os_template, "OS_TEMPLATE")
    return bench.add_container(status="running")


# ---------------------------------------------------------------------- the state of a guest


def marker(vm: Vm) -> str:
    return f"smith-uid={vm['service_id']}"


def cores(guest: Guest) -> int:
    return int(guest["config"]["cores"]) if guest else 0


def disk(guest: Guest, name: str) -> str:
    """Return the volume and the options of a disk; empty if there is none."""
    return str(guest["config"].get(name, "")) if guest else ""


def first_disk(bench: Bench, vm: Vm) -> str:
    """Return the name of the VM's first disk. In a lab the template decides it."""
    drives = {
        name: text for name, text in bench.guest(vm)["config"].items() if re.fullmatch(r"(scsi|virtio|sata)\d", name)
    }
    return min(name for name, text in drives.items() if "media=cdrom" not in text)


def is_marked(_bench: Bench, vm: Vm, guest: Guest) -> bool:
    return guest is not None and marker(vm) in guest["config"]["description"]


def is_running(_bench: Bench, _vm: Vm, guest: Guest) -> bool:
    return guest is not None and guest["status"] == "running"


def is_stopped(_bench: Bench, _vm: Vm, guest: Guest) -> bool:
    return guest is not None and guest["status"] == "stopped"


def is_absent(_bench: Bench, _vm: Vm, guest: Guest) -> bool:
    return guest is None


def has_snapshot(_bench: Bench, _vm: Vm, guest: Guest) -> bool:
    return guest is not None and guest["snapshots"] == [SNAPSHOT]


def has_archive(bench: Bench, vm: Vm, _guest: Guest) -> bool:
    """Whether the stand-in's backup storage has an archive of the VM. A lab only checks the answer: always True."""
    if bench.place.is_real:
        return True
    volumes = bench.pve.storages()[bench.place.backup_storage]["volumes"]
    return any(f"-{vm['vmid']}-" in volume for volume in volumes)
