"""Volumes left by a delete are removed only if the operator allows it and the VM's configuration named them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import cluster, volumes
from both_ways import Play
from play_bench import ACTIONS, Bench

GIB = 1024**3


def delete_and_leave_a_volume(bench: Bench, vm: dict[str, Any], **requested: Any) -> tuple[list[str], list[str]]:
    """Delete a VM whose first disk Proxmox cannot remove; return the volumes left, and the storage's volumes."""
    volume = bench.guest(vm)["config"]["scsi0"].partition(",")[0]
    bench.pve.control("unremovable", volume=volume)
    done = bench.play("delete", {**vm, **requested})
    assert done.rc == 0, done.output
    return done.result.get("volumes_left", []), bench.pve.storages()["local-lvm"]["volumes"]


@pytest.mark.proxmox(
    behaviour="a volume of a guest is removed only with Datastore.Allocate on its storage, and by its id alone",
    versions="8, 9",
    source="pve-storage: PVE/API2/Storage/Content.pm, delete",
    reaction="removes none, unless `SMITH_DELETE_REMOVE_VOLUMES` is set, and then only one that no other guest names",
)
def test_only_with_the_setting_a_left_volume_is_removed(bench: Bench, pve_version: str) -> None:
    vm = bench.vm()
    assert bench.play("create", vm).rc == 0
    left, existing = delete_and_leave_a_volume(bench, vm)
    assert len(left) == 1, pve_version
    assert left[0].partition(":")[2] in existing
    second_vm = bench.vm()
    assert bench.play("create", second_vm).rc == 0
    bench.pve.control("grant", path="/storage/local-lvm", privilege="Datastore.Allocate")
    try:
        left, existing = delete_and_leave_a_volume(bench, second_vm, remove_volumes_left=True)
    finally:
        bench.pve.control("revoke", path="/storage/local-lvm", privilege="Datastore.Allocate")
    assert left == []
    assert [volume for volume in existing if f"vm-{second_vm['vmid']}-" in volume] == []


def test_a_volume_whose_storage_cannot_be_read_counts_as_existing(bench: Bench) -> None:
    """Otherwise a volume that was not removed would not be named."""
    login = bench.pve.env()
    names = {"api_host": "HOST", "api_port": "PORT", "api_user": "USER", "api_token_id": "TOKEN_ID"}
    connection = {name: login[f"PROXMOX_{variable}"] for name, variable in names.items()}
    connection["api_token_secret"] = login["PROXMOX_TOKEN_SECRET"]
    opened, _login = cluster.open_cluster(connection, login["PROXMOX_CA_BUNDLE"], "qemu")
    named = {"local-lvm:vm-777-disk-0", "ceph:vm-777-disk-0"}
    bench.pve.fail("GET", "/nodes/pve1/storage/ceph/content", status=500, text="unable to activate storage 'ceph'")
    assert volumes.existing_or_unreadable_volumes(opened, "pve1", 777, named) == {"ceph:vm-777-disk-0"}
    assert volumes.existing_or_unreadable_volumes(opened, "pve1", 777, named) == set()


def test_without_the_privilege_the_volume_stays_and_is_named(bench: Bench, pve_version: str) -> None:
    vm = bench.vm()
    assert bench.play("create", vm).rc == 0
    left, existing = delete_and_leave_a_volume(bench, vm, remove_volumes_left=True)
    assert [volume.partition(":")[2] in existing for volume in left] == [True], pve_version


@pytest.fixture
def may_remove_volumes(bench: Bench) -> Iterator[None]:
    """Grant the privilege with which the token may remove every volume of the storage."""
    bench.pve.control("grant", path="/storage/local-lvm", privilege="Datastore.Allocate")
    yield
    bench.pve.control("revoke", path="/storage/local-lvm", privilege="Datastore.Allocate")


def add_guest_that_uses(bench: Bench, volume: str, usage: str) -> None:
    """Add another guest that uses the volume of a VM in the given way."""
    name = volume.partition(":")[2]
    other = bench.vm()
    control_command = {"lxc": "add_container"}.get(usage, "add")
    configs: dict[str, dict[str, Any]] = {
        "attached": {"scsi3": f"{volume},size=8G"},
        "unused": {"unused0": volume},
        "other storage": {"scsi3": f"ceph:{name},size=8G"},
        "linked clone": {"scsi0": f"local-lvm:{name}/vm-{other['vmid']}-disk-0,size=8G"},
        "linked clone of a file": {"scsi0": f"nfs:1/{name}/{other['vmid']}/vm-{other['vmid']}-disk-0.qcow2,size=8G"},
        "args": {"args": f"-drive file=/dev/pve/{name}"},
        "snapshot": {"scsi3": f"{volume},size=8G"},
        "lxc": {"mp0": f"{volume},mp=/srv"},
    }
    bench.pve.control(control_command, vmid=other["vmid"], name=other["name"], node="pve2", config=configs[usage])
    if usage == "snapshot":
        bench.pve.control("configure", vmid=other["vmid"], values={"description": f"smith-uid={other['service_id']}"})
        assert bench.play("snapshot", {**other, "snapshot": "before"}).rc == 0
        bench.pve.control("configure", vmid=other["vmid"], values={"scsi3": None})


@pytest.mark.usefixtures("may_remove_volumes")
@pytest.mark.parametrize(
    "usage",
    ["attached", "unused", "other storage", "linked clone", "linked clone of a file", "args", "snapshot", "lxc"],
)
def test_a_left_volume_that_another_guest_names_is_not_removed(bench: Bench, usage: str) -> None:
    vm = bench.add_vm()
    volume = f"local-lvm:vm-{vm['vmid']}-disk-0"
    add_volume_of_first_disk(bench, vm)
    add_guest_that_uses(bench, volume, usage)
    left, existing = delete_and_leave_a_volume(bench, vm, remove_volumes_left=True)
    assert left == [volume]
    assert volume.partition(":")[2] in existing


def add_volume_of_first_disk(bench: Bench, vm: dict[str, Any]) -> None:
    """Add the volume that the configuration of `add_vm` names."""
    volume = f"vm-{vm['vmid']}-disk-0"
    bench.pve.control("add_volume", storage="local-lvm", volume=volume, vmid=vm["vmid"], size=8 * GIB)


@pytest.mark.usefixtures("may_remove_volumes")
def test_a_text_that_names_a_left_volume_does_not_prevent_its_removal(bench: Bench) -> None:
    vm, other = bench.add_vm(), bench.vm()
    add_volume_of_first_disk(bench, vm)
    config = {"description": f"local-lvm:vm-{vm['vmid']}-disk-0", "scsi0": f"local-lvm:vm-{vm['vmid']}1-disk-0,size=1G"}
    bench.pve.control("add", vmid=other["vmid"], name=other["name"], config=config)
    assert delete_and_leave_a_volume(bench, vm, remove_volumes_left=True)[0] == []


@pytest.mark.usefixtures("may_remove_volumes")
def test_a_left_volume_that_the_vm_did_not_use_is_not_removed(bench: Bench) -> None:
    """`qm rescan` adds volumes of another cluster to a VM with the same VMID, as unused disks."""
    vm = bench.add_vm()
    others_volume = f"local-lvm:vm-{vm['vmid']}-disk-7"
    add_volume_of_first_disk(bench, vm)
    bench.pve.control("add_volume", storage="local-lvm", volume=others_volume[10:], vmid=vm["vmid"], size=GIB)
    bench.pve.control("configure", vmid=vm["vmid"], values={"unused0": others_volume})
    bench.pve.control("unremovable", volume=others_volume)
    left, existing = delete_and_leave_a_volume(bench, vm, remove_volumes_left=True)
    assert left == [others_volume]
    assert others_volume.partition(":")[2] in existing


@pytest.mark.usefixtures("may_remove_volumes")
@pytest.mark.parametrize("path", ["pending", "snapshot"])
@pytest.mark.parametrize("status", [403, 500, 595])
def test_a_left_volume_stays_while_it_is_unknown_who_uses_it(bench: Bench, path: str, status: int) -> None:
    vm = bench.add_vm()
    add_volume_of_first_disk(bench, vm)
    bench.pve.fail("GET", f"/nodes/pve2/qemu/9001/{path}", status=status, text="x", times=9)
    try:
        assert delete_and_leave_a_volume(bench, vm, remove_volumes_left=True)[0] == [
            f"local-lvm:vm-{vm['vmid']}-disk-0"
        ]
    finally:
        bench.pve.control("clear_faults")


@pytest.mark.usefixtures("may_remove_volumes")
def test_without_the_privilege_to_see_every_guest_a_left_volume_stays(bench: Bench) -> None:
    vm = bench.add_vm()
    add_volume_of_first_disk(bench, vm)
    audit = {"path": "/vms", "privilege": "VM.Audit"}
    try:
        left = delete_with_change_once_absent(bench, vm, lambda: bench.pve.control("revoke", **audit))
        assert left == [f"local-lvm:vm-{vm['vmid']}-disk-0"]
    finally:
        bench.pve.control("grant", path="/vms", privilege="VM.Audit")


def delete_with_change_once_absent(bench: Bench, vm: dict[str, Any], change: Callable[[], object]) -> list[str]:
    """Delete a VM, call `change` once the VM's absence is proven, and return the volumes left."""
    bench.pve.control("unremovable", volume=f"local-lvm:vm-{vm['vmid']}-disk-0")
    bench.pve.control("hold", method="GET", path="/cluster/nextid")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(bench.play, "delete", {**vm, "remove_volumes_left": True})
        while not bench.pve.is_holding():
            assert not running.done(), running.result().output
            time.sleep(0.02)
        change()
        bench.pve.control("clear_faults")
        done = running.result()
    assert done.rc == 0, done.output
    return list(done.result.get("volumes_left", []))


@pytest.mark.usefixtures("may_remove_volumes")
@pytest.mark.parametrize("does_new_guest_name_it", [True, False])
def test_a_left_volume_whose_vmid_has_a_new_guest_is_not_removed(bench: Bench, does_new_guest_name_it: bool) -> None:
    vm = bench.add_vm()
    add_volume_of_first_disk(bench, vm)
    volume = f"local-lvm:vm-{vm['vmid']}-disk-0"
    config = {"scsi0": f"{volume},size=8G"} if does_new_guest_name_it else {}
    add = {"vmid": vm["vmid"], "name": "another", "config": config}
    assert delete_with_change_once_absent(bench, vm, lambda: bench.pve.control("add", **add)) == [volume]
    assert volume.partition(":")[2] in bench.pve.storages()["local-lvm"]["volumes"]


@pytest.mark.usefixtures("may_remove_volumes")
def test_a_volume_that_was_made_after_the_deletion_is_not_removed(bench: Bench) -> None:
    """Another cluster that uses the storage has created it."""
    vm = bench.add_vm()
    add_volume_of_first_disk(bench, vm)
    time.sleep(1.1)  # Proxmox states in whole seconds when a volume was created
    assert delete_with_change_once_absent(bench, vm, lambda: add_volume_of_first_disk(bench, vm)) == [
        f"local-lvm:vm-{vm['vmid']}-disk-0"
    ]


@pytest.mark.parametrize("action", ACTIONS)
def test_a_volume_of_another_cluster_survives_every_action(bench: Bench, play: Play, action: str) -> None:
    """Several clusters may use one storage, so a volume with this VMID may belong to another cluster's guest."""
    status = "running" if action in ("stop", "restart") else "stopped"
    vm = bench.vm(node="pve1") if action == "create" else bench.add_vm(status=status)
    if action == "rollback":
        assert play("snapshot", {**vm, "snapshot": "before"}).message == ""
    others_volume = f"vm-{vm['vmid']}-disk-0"
    bench.pve.control("add_volume", storage="ceph", volume=others_volume, vmid=vm["vmid"], size=GIB)
    bench.pve.control("grant", path="/storage/ceph", privilege="Datastore.Allocate")
    requested: dict[str, dict[str, Any]] = {
        "update": {"cores": 4, "disks": [{"disk": "scsi1", "size_gib": 1, "storage": "ceph"}]},
        "resize": {"disk_gib": 9},
        "migrate": {"target_node": "pve2"},
        "backup": {"backup_storage": "backups"},
        "rollback": {"snapshot": "before"},
        "delete": {"remove_volumes_left": True},
    }
    try:
        assert play(action, {**vm, **requested.get(action, {})}).message == ""
    finally:
        bench.pve.control("revoke", path="/storage/ceph", privilege="Datastore.Allocate")
    assert others_volume in bench.pve.storages()["ceph"]["volumes"]


@pytest.mark.parametrize("action", ["create", "update", "delete"])
def test_a_volume_of_another_cluster_survives_actions_on_containers(bench: Bench, play: Play, action: str) -> None:
    container = bench.container(node="pve1", storage="local-lvm", os_template=bench.place.os_template)
    if action != "create":
        container = bench.add_container(config={"rootfs": f"local-lvm:vm-{container['vmid']}-disk-0,size=4G"})
    others_volume = f"vm-{container['vmid']}-disk-0"
    bench.pve.control("add_volume", storage="ceph", volume=others_volume, vmid=container["vmid"], size=GIB)
    assert play(action, {**container, "memory_mib": 1024, "remove_volumes_left": action == "delete"}).message == ""
    assert others_volume in bench.pve.storages()["ceph"]["volumes"]


def test_a_create_that_would_use_a_volume_of_another_cluster_is_refused(bench: Bench, play: Play) -> None:
    """The volume would count as the new VM's, and a deletion of the new VM would remove it."""
    vm = bench.vm(node="pve1", storage="ceph")
    others_volume = f"vm-{vm['vmid']}-disk-0"
    bench.pve.control("add_volume", storage="ceph", volume=others_volume, vmid=vm["vmid"], size=GIB)
    refused, changes = bench.changing_requests(lambda: play("create", vm))
    assert (refused.code, changes) == ("VM_ID_TAKEN", [])
    assert others_volume in bench.pve.storages()["ceph"]["volumes"]
