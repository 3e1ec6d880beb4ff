"""Volumes left by a delete are removed only if the operator allows it and the VM's configuration named them."""

from __future__ import annotations

from typing import Any

import pytest
from both_ways import Play
from play_bench import ACTIONS, Bench

GIB = 1024**3


def deleted(bench: Bench, vm: dict[str, Any], **requested: Any) -> tuple[list[str], list[str]]:
    """Delete a VM whose first disk Proxmox cannot remove; return the volumes left, and those of the storage."""
    volume = bench.guest(vm)["config"]["scsi0"].partition(",")[0]
    bench.pve.control("unremovable", volume=volume)
    done = bench.play("delete", {**vm, **requested})
    assert done.rc == 0, done.output
    return done.result.get("volumes_left", []), bench.pve.storages()["local-lvm"]["volumes"]


@pytest.mark.proxmox(
    behaviour="a volume of a guest is removed only with Datastore.Allocate on its storage, and by its id alone",
    versions="8, 9",
    source="pve-storage: PVE/API2/Storage/Content.pm, delete",
    reaction="removes none, unless `SMITH_DELETE_REMOVE_VOLUMES` is set and the VM's configuration named the volume",
)
def test_only_with_the_setting_a_left_volume_is_removed(bench: Bench, pve_version: str) -> None:
    vm = bench.vm()
    assert bench.play("create", vm).rc == 0
    left, existing = deleted(bench, vm)
    assert len(left) == 1, pve_version
    assert left[0].partition(":")[2] in existing
    other = bench.vm()
    assert bench.play("create", other).rc == 0
    bench.pve.control("grant", path="/storage/local-lvm", privilege="Datastore.Allocate")
    try:
        left, existing = deleted(bench, other, remove_volumes_left=True)
    finally:
        bench.pve.control("revoke", path="/storage/local-lvm", privilege="Datastore.Allocate")
    assert left == []
    assert [volume for volume in existing if f"vm-{other['vmid']}-" in volume] == []


def test_without_the_privilege_the_volume_stays_and_is_named(bench: Bench, pve_version: str) -> None:
    vm = bench.vm()
    assert bench.play("create", vm).rc == 0
    left, existing = deleted(bench, vm, remove_volumes_left=True)
    assert [volume.partition(":")[2] in existing for volume in left] == [True], pve_version


@pytest.mark.parametrize("action", ACTIONS)
def test_a_volume_of_another_cluster_survives_every_action(bench: Bench, play: Play, action: str) -> None:
    """Several clusters may use one storage: a volume may have a VMID that is another guest's elsewhere."""
    status = "running" if action in ("stop", "restart") else "stopped"
    vm = bench.vm(node="pve1") if action == "create" else bench.add_vm(status=status)
    if action == "rollback":
        assert play("snapshot", {**vm, "snapshot": "before"}).message == ""
    foreign = f"vm-{vm['vmid']}-disk-0"
    bench.pve.control("add_volume", storage="ceph", volume=foreign, vmid=vm["vmid"], size=GIB)
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
    assert foreign in bench.pve.storages()["ceph"]["volumes"]


@pytest.mark.parametrize("action", ["create", "update", "delete"])
def test_a_volume_of_another_cluster_survives_actions_on_containers(bench: Bench, play: Play, action: str) -> None:
    container = bench.container(node="pve1", storage="local-lvm", os_template=bench.place.os_template)
    if action != "create":
        container = bench.add_container(config={"rootfs": f"local-lvm:vm-{container['vmid']}-disk-0,size=4G"})
    foreign = f"vm-{container['vmid']}-disk-0"
    bench.pve.control("add_volume", storage="ceph", volume=foreign, vmid=container["vmid"], size=GIB)
    assert play(action, {**container, "memory_mib": 1024, "remove_volumes_left": action == "delete"}).message == ""
    assert foreign in bench.pve.storages()["ceph"]["volumes"]


def test_a_create_that_would_use_a_volume_of_another_cluster_is_refused(bench: Bench, play: Play) -> None:
    """The new VM would have the volume under its own name, and its deletion would remove it."""
    vm = bench.vm(node="pve1", storage="ceph")
    foreign = f"vm-{vm['vmid']}-disk-0"
    bench.pve.control("add_volume", storage="ceph", volume=foreign, vmid=vm["vmid"], size=GIB)
    refused, changes = bench.changing_requests(lambda: play("create", vm))
    assert (refused.code, changes) == ("VM_ID_TAKEN", [])
    assert foreign in bench.pve.storages()["ceph"]["volumes"]
