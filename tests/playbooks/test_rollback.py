"""A rollback that Proxmox would refuse is refused before the first change, and every other rollback is executed."""

from __future__ import annotations

from typing import Any

import pytest
from play_bench import Bench
from test_refusals import GIB, refused

from executor.runs.results import detail_for_tenants
from executor.shared.error_codes import ErrorCode

SNAPSHOTS = ("first", "second", "third")
#: Storages that roll a volume back to its newest snapshot only.
STORAGES: dict[str, dict[str, Any]] = {
    "tank": {"type": "zfspool", "content": "images,rootdir"},
    "chained": {"type": "dir", "content": "images", "snapshot-as-volume-chain": 1},
}


@pytest.fixture(autouse=True)
def storages(bench: Bench) -> None:
    for name, values in STORAGES.items():
        bench.pve.control("add_storage", storage=name, avail=100 * GIB, **values)


def add_guest_with_snapshots(bench: Bench, volume: str, kind: str = "qemu") -> dict[str, Any]:
    """Add a guest with one disk, such as `tank:vm-{}-disk-0`, and with SNAPSHOTS."""
    guest = bench.add_container() if kind == "lxc" else bench.add_vm()
    key = "rootfs" if kind == "lxc" else "scsi0"
    bench.pve.control("configure", vmid=guest["vmid"], values={key: f"{volume.format(guest['vmid'])},size=8G"})
    for name in SNAPSHOTS:
        done = bench.play("snapshot", {**guest, "snapshot": name})
        assert done.rc == 0, done.output
    return guest


@pytest.mark.proxmox(
    behaviour="ZFS, and a storage with `snapshot-as-volume-chain`, roll a volume back to its newest snapshot only",
    versions="8, 9",
    source="pve-storage: PVE/Storage/ZFSPoolPlugin.pm and PVE/Storage/Plugin.pm, volume_rollback_is_possible",
    reaction="compares the snapshots' volumes before the first change (`VM_STATE`), and names the newer snapshots",
)
@pytest.mark.parametrize(
    ("kind", "volume"),
    [("qemu", "tank:vm-{}-disk-0"), ("lxc", "tank:subvol-{}-disk-0"), ("qemu", "chained:{0}/vm-{0}-disk-0.qcow2")],
)
def test_a_rollback_that_newer_snapshots_block_is_refused_before_any_change(
    bench: Bench, pve_version: str, kind: str, volume: str
) -> None:
    guest = add_guest_with_snapshots(bench, volume, kind)
    done = refused(bench, "rollback", {**guest, "snapshot": "first"})
    assert done.code == "VM_STATE", (pve_version, done.message)
    shown = detail_for_tenants(ErrorCode.VM_STATE, done.message.partition(": ")[2])
    assert shown.endswith("; first remove the newer snapshots second, third"), shown
    assert bench.play("rollback", {**guest, "snapshot": "third"}).rc == 0
    assert bench.play("rollback", {**guest, "snapshot": ""}).rc == 0, "without a name, the newest snapshot is used"


@pytest.mark.parametrize("volume", ["local-lvm:vm-{}-disk-0", "ceph:vm-{}-disk-0"])
def test_a_rollback_to_an_older_snapshot_succeeds_where_the_storage_supports_it(
    bench: Bench, pve_version: str, volume: str
) -> None:
    """A disk on ZFS that only newer snapshots contain does not block a rollback of the other disks."""
    vm = add_guest_with_snapshots(bench, volume)
    bench.pve.control("configure", vmid=vm["vmid"], values={"scsi1": f"tank:vm-{vm['vmid']}-disk-1,size=1G"})
    assert bench.play("snapshot", {**vm, "snapshot": "with-a-disk"}).rc == 0
    done = bench.play("rollback", {**vm, "snapshot": "first"})
    assert done.rc == 0, (pve_version, done.output)


def test_a_rollback_that_a_snapshot_known_only_to_the_storage_blocks_has_the_same_code(
    bench: Bench, pve_version: str
) -> None:
    """A snapshot that only the storage has, such as one of a backup program, is not visible before the rollback."""
    vm = add_guest_with_snapshots(bench, "tank:vm-{}-disk-0")
    text = f"can't rollback, 'third' is not most recent snapshot on 'tank:vm-{vm['vmid']}-disk-0'"
    bench.pve.control("fail_task", type="qmrollback", text=text)
    done = bench.play("rollback", {**vm, "snapshot": "third"})
    assert (done.code, "not most recent" in done.message) == ("VM_STATE", True), (pve_version, done.message)
