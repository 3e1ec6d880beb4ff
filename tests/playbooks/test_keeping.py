"""Resize, migrate, backup and delete: converge, run again without a change, verify in Proxmox."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from both_ways import Play
from play_bench import Bench, needs


@pytest.mark.lab
def test_resize_grows_disks_and_changes_nothing_else(bench: Bench) -> None:
    vm, larger_gib = {**bench.add_vm(), "cores": 16}, bench.place.disk_gib + 1
    vm |= {"disk_gib": larger_gib}
    done, changes = bench.changing_requests(lambda: bench.play("resize", vm))
    assert (done.rc, done.result["disk_gib"], done.result["cores"]) == (0, larger_gib, 2), done.output
    assert changes == [f"PUT /nodes/{bench.place.node}/qemu/{vm['vmid']}/resize"]
    again, changes = bench.changing_requests(lambda: bench.play("resize", vm))
    assert (again.rc, again.result["changed"], changes) == (0, False, [])
    assert bench.play("resize", {**vm, "disks": [{"disk": "scsi9", "size_gib": 9}]}).code == "INVALID_REQUEST"


@pytest.mark.lab
def test_migrate_keeps_the_power_state_and_skips_a_vm_on_its_target_node(bench: Bench) -> None:
    needs(bench.place.second_node, "SECOND_NODE")
    first_node, second_node = bench.place.node, bench.place.second_node
    shared = {"scsi0": f"{bench.place.other_storage}:vm-1-disk-0,size=8G"}
    vm = {**bench.add_vm(status="running", config=shared), "target_node": second_node}
    refused, changes = bench.changing_requests(lambda: bench.play("migrate", {**vm, "online": False}))
    assert (refused.code, changes) == ("VM_STATE", [])
    done = bench.play("migrate", vm)
    assert (done.rc, done.result["node"], done.result["status"]) == (0, second_node, "running"), done.output
    assert (bench.guest(vm)["node"], done.module_runs) == (second_node, 1)
    again, changes = bench.changing_requests(lambda: bench.play("migrate", {**vm, "node": first_node}))
    assert (again.rc, again.result["changed"], changes) == (0, False, []), again.output


def test_an_impossible_migration_ends_with_the_code_of_its_cause(bench: Bench) -> None:
    vm = bench.add_vm(status="running")
    assert bench.play("migrate", {**vm, "target_node": "pve2"}).code == "VM_STATE"  # its disk is local
    bench.pve.control("power", vmid=vm["vmid"], status="stopped")
    bench.pve.fail_task("qmigrate", "migration aborted")
    assert bench.play("migrate", {**vm, "target_node": "pve2"}).code == "TASK_FAILED"
    bench.pve.control("node", node="pve2", online=False)
    assert bench.play("migrate", {**vm, "target_node": "pve2"}).code == "NODE_DOWN"


@pytest.mark.lab
def test_each_backup_is_a_new_archive(bench: Bench) -> None:
    needs(bench.place.backup_storage, "BACKUP_STORAGE")
    vm = {**bench.add_vm(status="running"), "backup_storage": bench.place.backup_storage}
    names = [bench.play("backup", vm).result["backup"] for _ in range(2)]
    assert len(set(names)) == 2
    assert all(f"vzdump-qemu-{vm['vmid']}-" in name for name in names)


def test_a_failed_backup_reports_its_cause(bench: Bench) -> None:
    vm = {**bench.add_vm(status="running"), "backup_storage": "backups"}
    bench.pve.fail_task("vzdump", "unable to write to storage 'backups': No space left on device")
    assert bench.play("backup", vm).code == "CAPACITY"
    assert bench.play("backup", {**vm, "backup_storage": "local-lvm"}).code == "INVALID_REQUEST"


def test_a_backup_removes_no_archive(bench: Bench) -> None:
    """Proxmox would remove the VMID's oldest archives, which may be those of an earlier guest of another service."""
    vm = {**bench.add_vm(), "backup_storage": "backups"}
    bench.pve.control("storage", storage="backups", **{"prune-backups": "keep-last=2"})
    try:
        archives = [bench.play("backup", vm).result["backup"] for _ in range(2)]
        refused, changes = bench.changing_requests(lambda: bench.play("backup", vm))
    finally:
        bench.pve.control("storage", storage="backups", **{"prune-backups": ""})
    assert (refused.code, changes) == ("CAPACITY", ["POST /nodes/pve1/vzdump"]), refused.output
    assert "max backup limit" in refused.message
    assert {volume.removeprefix("backups:") for volume in archives} <= set(bench.pve.storages()["backups"]["volumes"])


@pytest.mark.parametrize("kind", ["qemu", "lxc"])
def test_the_notes_of_an_archive_name_the_service(bench: Bench, play: Play, kind: str) -> None:
    guest = bench.add_container() if kind == "lxc" else bench.add_vm()
    done = play("backup", {**guest, "backup_storage": "backups"})
    notes = bench.pve.storages()["backups"]["notes"][done.result["backup"].removeprefix("backups:")]
    assert notes == f"{guest['name']}\nsmith-uid={guest['service_id']}"


def test_a_backup_identifies_its_proxmox_task_by_the_answer_of_its_request(bench: Bench) -> None:
    """A second backup of the same VM by another client is not mistaken for the backup that the action started."""
    vm = {**bench.add_vm(), "backup_storage": "backups"}
    bench.pve.control("hold_change", number=1)
    with ThreadPoolExecutor() as pool:
        played = pool.submit(bench.play, "backup", vm)
        while not bench.pve.is_holding():
            time.sleep(0.02)
        others_upid = bench.pve.control("add_task", vmid=vm["vmid"], type="vzdump", exitstatus="interrupted by signal")
        bench.pve.control("clear_faults")
        done = played.result()
    assert (done.rc, len(done.result["upids"]), others_upid in done.result["upids"]) == (0, 1, False), done.output


def test_a_vm_is_deleted_only_after_its_final_backup(bench: Bench) -> None:
    vm = {**bench.add_vm(status="running"), "final_backup": "backups"}
    bench.pve.fail_task("vzdump", "unable to write to storage 'backups': No space left on device")
    failed = bench.play("delete", vm)
    assert (failed.code, bench.guest(vm)["status"]) == ("CAPACITY", "stopped")
    done = bench.play("delete", vm)
    assert (done.rc, done.result["status"], bench.pve.guest(vm["vmid"])) == (0, "absent", None), done.output
    assert f"vzdump-qemu-{vm['vmid']}-" in done.result["backup"]
    assert bench.play("delete", vm).rc == 0


@pytest.mark.parametrize("version", ["8.4.1", "9.0.10"])
def test_a_deletion_warns_of_a_disk_that_proxmox_could_not_remove(bench: Bench, version: str) -> None:
    """Proxmox 8 ends the Proxmox task with OK, Proxmox 9 with WARNINGS. The disk has the data of a former customer."""
    vm = bench.add_vm()
    volume = f"local-lvm:vm-{vm['vmid']}-disk-0"
    bench.pve.control("unremovable", volume=volume)
    bench.pve.control("version", version=version)
    try:
        done = bench.play("delete", vm)
    finally:
        bench.pve.control("version", version="9.0.10")
    assert (done.rc, done.result["status"], done.result["volumes_left"]) == (0, "absent", [volume]), done.output
    assert f"VM {vm['vmid']} is deleted, but Proxmox could not remove" in done.output
    exit_statuses = {task["exitstatus"] for task in bench.pve.tasks() if task["upid"] in done.result["upids"]}
    assert exit_statuses == ({"OK"} if version.startswith("8.") else {"WARNINGS: 1"})


@pytest.mark.proxmox(
    behaviour="a destroy also leaves the cloud-init drive if it cannot remove it; it has a password's hash and keys",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer.pm, destroy_vm",
    reaction="names it in `volumes_left`, also when the delete is repeated",
)
def test_a_deletion_warns_of_a_cloud_init_drive_that_stays_and_so_does_a_repeated_one(bench: Bench) -> None:
    vm = bench.vm(node="pve1")
    assert bench.play("create", vm).rc == 0
    drive = bench.guest(vm)["config"]["ide2"].partition(",")[0]
    bench.pve.control("unremovable", volume=drive)
    for _ in range(2):
        done = bench.play("delete", vm)
        assert (done.rc, done.result["status"], done.result["volumes_left"]) == (0, "absent", [drive]), done.output
        assert done.result["warnings"][0].startswith(f"VOLUMES_LEFT: VM {vm['vmid']} is deleted")
        assert "VOLUMES_LEFT" in done.output


@pytest.mark.parametrize("node", ["", "pve2"])
def test_a_repeated_deletion_finds_the_disks_left_also_if_the_job_names_another_node(bench: Bench, node: str) -> None:
    """The first attempt may fail after the deletion, and the VM may have moved since its node was stored."""
    vm = bench.vm(node="pve1")
    assert bench.play("create", vm).rc == 0
    volume = bench.guest(vm)["config"]["scsi0"].partition(",")[0]
    bench.pve.control("unremovable", volume=volume)
    assert bench.play("delete", vm).result["volumes_left"] == [volume]
    repeated = bench.play("delete", {**vm, "node": node})
    assert (repeated.rc, repeated.result["volumes_left"]) == (0, [volume]), repeated.output


def test_the_deletion_of_an_absent_vm_warns_if_an_offline_node_may_have_deleted_it(bench: Bench) -> None:
    vm = bench.vm(node="")
    bench.pve.control(
        "grant", path="/", privilege="Sys.Audit"
    )  # without it, Proxmox does not report whether it is quorate
    bench.pve.control("node", node="pve2", online=False)
    try:
        done = bench.play("delete", vm)
    finally:
        bench.pve.control("node", node="pve2", online=True)
        bench.pve.control("revoke", path="/", privilege="Sys.Audit")
    assert (done.rc, done.result["status"]) == (0, "absent"), done.output
    assert f"It is unknown whether all disks of VM {vm['vmid']} are removed: a node that may" in done.output


@pytest.mark.proxmox(
    behaviour="a destroy removes no volume that only a snapshot names, and does not log it",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer.pm, destroy_vm",
    reaction="lists the VMID's volumes after the delete, and names those of the snapshots in `volumes_left`",
)
def test_a_deletion_warns_of_a_volume_that_only_a_snapshot_names(bench: Bench) -> None:
    vm = bench.vm(node="pve1")
    assert bench.play("create", vm).rc == 0
    assert bench.play("snapshot", {**vm, "snapshot": "before"}).rc == 0
    volume = bench.guest(vm)["config"]["scsi0"].partition(",")[0]
    bench.pve.control("configure", vmid=vm["vmid"], values={"scsi0": None})
    done = bench.play("delete", vm)
    assert (done.rc, done.result["volumes_left"]) == (0, [volume]), done.output


def test_an_ordinary_deletion_leaves_no_volumes(bench: Bench) -> None:
    done = bench.play("delete", bench.add_vm())
    assert (done.rc, "volumes_left" in done.result, "[WARNING]" in done.output) == (0, False, False), done.output


@pytest.mark.lab
def test_a_deletion_with_a_grace_period_stops_marks_and_later_destroys_the_vm(bench: Bench) -> None:
    vm = {**bench.add_vm(status="running"), "grace_s": 3600}
    marked = bench.play("delete", vm)
    assert (marked.rc, marked.result["status"], marked.result["changed"]) == (0, "stopped", True), marked.output
    delete_at = marked.result["delete_at"]
    assert delete_at > time.time()
    assert bench.guest(vm)["config"]["tags"] == f"smith;smith-delete-{delete_at};web"
    again, changes = bench.changing_requests(lambda: bench.play("delete", vm))
    assert (again.rc, again.result["delete_at"], changes) == (0, delete_at, [])
    assert bench.play("start", vm).code == "VM_STATE"
    vm_with_short_grace = {**bench.add_vm(), "grace_s": 1}
    assert bench.play("delete", vm_with_short_grace).result["status"] == "stopped"
    time.sleep(2)
    vm, done = vm_with_short_grace, bench.play("delete", vm_with_short_grace)
    assert (done.rc, done.result["status"], bench.pve.guest(vm["vmid"])) == (0, "absent", None), done.output


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["qemu", "lxc"])
def test_a_cancelled_deletion_keeps_the_vm(bench: Bench, kind: str) -> None:
    needs(kind == "qemu" or bench.place.os_template, "OS_TEMPLATE")
    vm = bench.add_container(status="running") if kind == "lxc" else bench.add_vm(status="running")
    marked = bench.play("delete", {**vm, "grace_s": 3600})
    assert (marked.rc, marked.result["status"], marked.result["delete_at"] > time.time()) == (0, "stopped", True)
    before_due, changes = bench.changing_requests(lambda: bench.play("delete", {**vm, "only_when_due": True}))
    assert (before_due.result["delete_at"], changes) == (marked.result["delete_at"], [])
    identity = {key: vm[key] for key in ("service_id", "vmid", "name", "kind") if key in vm}
    cancelled = bench.play("update", {**identity, "cancel_deletion": True})
    assert (cancelled.rc, cancelled.result["changed"], cancelled.result["delete_at"]) == (0, True, 0), cancelled.output
    after_cancellation, changes = bench.changing_requests(lambda: bench.play("delete", {**vm, "only_when_due": True}))
    assert (
        after_cancellation.rc,
        after_cancellation.result["delete_at"],
        after_cancellation.result["changed"],
        changes,
    ) == (0, 0, False, []), after_cancellation.output
    assert bench.play("start", vm).rc == 0


@pytest.mark.lab
def test_a_marked_container_is_destroyed_when_its_grace_period_has_ended(bench: Bench) -> None:
    needs(bench.place.os_template, "OS_TEMPLATE")
    vm = {**bench.add_container(), "grace_s": 1, "description": "smith-delete=1"}
    marked = bench.play("delete", vm)
    assert (marked.rc, marked.result["status"]) == (0, "stopped"), marked.output
    time.sleep(1)
    done = bench.play("delete", {**vm, "only_when_due": True})
    assert (done.rc, done.result["status"], bench.pve.guest(vm["vmid"])) == (0, "absent", None), done.output


@pytest.mark.lab
@pytest.mark.proxmox(
    behaviour="a guest that the HA manager manages is deleted only with `purge`",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, destroy_vm",
    reaction="refuses the delete before it stops the guest (`VM_STATE`)",
)
@pytest.mark.parametrize("kind", ["qemu", "lxc"])
def test_a_delete_that_the_ha_manager_prevents_is_refused_before_the_guest_is_stopped(bench: Bench, kind: str) -> None:
    vm = (bench.add_vm if kind == "qemu" else bench.add_container)(status="running")
    bench.pve.control("behave", vmid=vm["vmid"], ha_state="started")
    refused, changes = bench.changing_requests(lambda: bench.play("delete", {**vm, "final_backup": "backups"}))
    assert (refused.code, changes, bench.guest(vm)["status"]) == ("VM_STATE", [], "running")
    assert bench.play("delete", {**vm, "purge": True}).message == ""
    assert bench.pve.guest(vm["vmid"]) is None


def test_only_an_explicit_purge_removes_the_vm_from_proxmoxs_jobs(bench: Bench) -> None:
    for purge in (False, True):
        vm = {**bench.add_vm(), "purge": purge}
        assert bench.play("delete", vm).rc == 0
        request = next(entry for entry in reversed(bench.pve.changing_requests()) if entry["method"] == "DELETE")
        assert ("purge" in request["params"]) is purge
