"""Volumes of deleted guests: a delete warns of them, and no new guest gets their VMID. By hand and by the agent."""

from __future__ import annotations

from typing import Any

import pytest
from both_ways import Play
from play_bench import Bench

GIB = 1024**3


@pytest.mark.parametrize("version", ["8.4.1", "9.0.10"])
@pytest.mark.parametrize("drive", ["scsi0", "ide2"])
def test_a_deletion_names_the_volumes_that_proxmox_could_not_remove(
    bench: Bench, play: Play, drive: str, version: str
) -> None:
    """Proxmox 8 ends the Proxmox task with OK, Proxmox 9 with WARNINGS. The cloud-init drive has a password's hash."""
    vm = bench.vm(node="pve1")
    assert play("create", vm).message == ""
    volume = bench.guest(vm)["config"][drive].partition(",")[0]
    bench.pve.control("unremovable", volume=volume)
    bench.pve.control("version", version=version)
    try:
        done = play("delete", vm)
    finally:
        bench.pve.control("version", version="9.0.10")
    assert (done.message, done.result["status"], done.result["volumes_left"]) == ("", "absent", [volume])
    assert done.result["warnings"][0].startswith(f"VOLUMES_LEFT: VM {vm['vmid']} is deleted")


def request_for_new_guest(bench: Bench, kind: str) -> tuple[dict[str, Any], str]:
    """Return the request for a new guest, and the storage on which one of its volumes will be."""
    if kind == "container":
        return bench.container(node="pve1", storage="ceph", os_template=bench.place.os_template), "ceph"
    if kind == "blank":
        return bench.vm(template_vmid=None, blank=True, node="pve1", storage="ceph"), "ceph"
    if kind == "linked clone":
        return bench.vm(full_clone=False), "local-lvm"
    if kind == "second disk":
        return bench.vm(disks=[{"disk": "scsi1", "size_gib": 1, "storage": "ceph"}]), "ceph"
    return bench.vm(storage="ceph"), "ceph"


@pytest.mark.proxmox(
    behaviour="Proxmox gives a VMID to a new guest although volumes of its former guest exist",
    versions="8, 9",
    source="pve-storage: PVE/Storage/Plugin.pm, find_free_diskname",
    reaction="uses no VMID whose former guest has left volumes (`VM_ID_TAKEN`)",
)
@pytest.mark.parametrize("kind", ["full clone", "linked clone", "second disk", "blank", "container"])
def test_a_vmid_with_volumes_of_a_former_guest_is_refused_before_any_change(
    bench: Bench, play: Play, kind: str
) -> None:
    """The new guest would find the disks of an earlier customer under the names of its disks."""
    vm, storage = request_for_new_guest(bench, kind)
    volume = f"vm-{vm['vmid']}-disk-0"
    bench.pve.control("add_volume", storage=storage, volume=volume, vmid=vm["vmid"], size=GIB)
    refused, changes = bench.changing_requests(lambda: play("create", vm))
    assert (refused.code, changes) == ("VM_ID_TAKEN", [])
    assert f"{storage}:{volume}" in refused.message


def test_archives_of_a_former_guest_are_no_reason_to_refuse_its_vmid(bench: Bench, play: Play) -> None:
    bench.pve.control("add_storage", storage="mixed", type="dir", content="images,backup", avail=100 * GIB)
    deleted_vm = bench.add_vm()
    assert play("backup", {**deleted_vm, "backup_storage": "mixed"}).message == ""
    assert play("delete", deleted_vm).message == ""
    vm = {**bench.vm(storage="mixed"), "vmid": deleted_vm["vmid"]}
    assert play("create", vm).message == ""


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [
        (500, "unable to activate storage 'ceph' - not mounted", "STORAGE_UNAVAILABLE"),
        (500, "storage 'ceph' is not available on node 'pve1'", "STORAGE_UNAVAILABLE"),
        (595, "Connection refused", "NODE_DOWN"),
        (596, "Connection timed out", "PVE_TIMEOUT"),
    ],
)
def test_a_create_is_not_begun_while_a_storage_cannot_be_read(
    bench: Bench, play: Play, status: int, text: str, code: str
) -> None:
    """The storage may have volumes of the VMID's former guest."""
    vm = bench.vm(storage="ceph")
    bench.pve.fail("GET", "/nodes/*/storage/ceph/content", status=status, text=text, times=9)
    refused, changes = bench.changing_requests(lambda: play("create", vm))
    assert (refused.code, changes) == (code, []), refused.message
    bench.pve.control("clear_faults")
    assert play("create", vm).message == ""


def test_a_storage_that_the_token_may_not_read_is_no_reason_to_refuse_a_create(bench: Bench, play: Play) -> None:
    """A template may be on a storage that the token must not use, while its clones are on another storage."""
    bench.pve.fail("GET", "/nodes/*/storage/local-lvm/content", status=403, text="Permission check failed", times=9)
    assert play("create", bench.vm(storage="ceph")).message == ""


def test_a_repeated_deletion_names_every_volume_of_the_vmid_on_its_node(bench: Bench, play: Play) -> None:
    """Only the interrupted first attempt knew the volumes of the snapshots, which the Proxmox task does not name."""
    vm = bench.vm(node="pve1")
    assert play("create", vm).message == ""
    assert play("snapshot", {**vm, "snapshot": "before"}).message == ""
    volume = bench.guest(vm)["config"]["scsi0"].partition(",")[0]
    bench.pve.control("configure", vmid=vm["vmid"], values={"scsi0": None})
    first = play("delete", vm)
    assert (first.message, first.result["volumes_left"]) == ("", [volume])
    again = play("delete", vm)
    assert (again.message, again.result["status"], again.result["volumes_left"]) == ("", "absent", [volume])
    expected = (
        f"these volumes have its VMID in their names: {volume} (remove them by hand, unless a guest of another cluster"
    )
    assert expected in again.result["warnings"][0]
    bench.pve.control("remove_volume", storage=volume.partition(":")[0], volume=volume.partition(":")[2])
    assert "volumes_left" not in play("delete", vm).result


def test_the_deletion_of_a_vm_that_never_existed_names_no_volumes(bench: Bench, play: Play) -> None:
    """Volumes of a VMID without a deletion are of another cluster, or of a former guest whose deletion named them."""
    vm = bench.vm(node="pve1")
    bench.pve.control("add_volume", storage="ceph", volume=f"vm-{vm['vmid']}-disk-0", vmid=vm["vmid"], size=GIB)
    done = play("delete", vm)
    assert (done.message, done.result["status"], "volumes_left" in done.result) == ("", "absent", False)


@pytest.mark.by_hand
def test_a_deletion_says_which_storage_could_not_be_read_afterwards(bench: Bench) -> None:
    vm = bench.vm(node="pve1")
    assert bench.play("create", vm).rc == 0
    path, text = "/nodes/pve1/storage/local-lvm/content", "unable to activate storage 'local-lvm'"
    for _ in ("the deletion", "a repeated one"):
        bench.pve.fail("GET", path, status=500, text=text, times=9)
        done = bench.play("delete", vm)
        bench.pve.control("clear_faults")
        assert (done.rc, done.result["status"]) == (0, "absent"), done.output
        output = " ".join(done.output.split())
        assert f"It is unknown whether all disks of VM {vm['vmid']} are removed: local-lvm: 500" in output
