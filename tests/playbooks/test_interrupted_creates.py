"""Creates that were interrupted, or whose answers were lost: afterwards there is one VM or none, never two."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from play_bench import ROOT, Bench, read_record


@pytest.mark.by_hand
def test_a_create_on_a_full_storage_fails_with_capacity_and_leaves_no_vm(bench: Bench) -> None:
    bench.pve.control("storage", storage="local-lvm", avail=1024)
    vm = bench.vm()
    done = bench.play("create", vm)
    assert done.code == "CAPACITY"
    assert "No space left" in done.message
    assert bench.pve.guest(vm["vmid"]) is None


def test_a_failed_clone_has_the_error_code_of_its_proxmox_tasks_message(bench: Bench) -> None:
    bench.pve.fail_task("qmclone", "clone failed: rbd error: rbd: listing images failed")
    assert bench.play("create", bench.vm()).code == "STORAGE_UNAVAILABLE"


def test_a_clone_made_by_an_interrupted_run_is_adopted_by_its_name(bench: Bench) -> None:
    """The clone has the template's description and tags. Only its name, reserved for this service, shows its owner."""
    vm = bench.add_vm(config={"description": "debian-12 cloud image", "tags": "image", "cores": 1})
    done, changes = bench.changing_requests(lambda: bench.play("create", vm))
    assert (done.rc, done.result["adopted"], done.result["cores"]) == (0, True, 2)
    assert changes == [f"PUT /nodes/pve1/qemu/{vm['vmid']}/config"]


def test_a_create_waits_for_a_clone_that_is_still_running(bench: Bench) -> None:
    vm = bench.add_vm(config={"description": "debian-12 cloud image"})
    bench.pve.control("lock", vmid=vm["vmid"], lock="clone")
    env = bench.environment()
    with subprocess.Popen(bench.command("create", vm), env=env, cwd=ROOT, stdout=subprocess.DEVNULL) as play:
        time.sleep(4)
        assert play.poll() is None
        bench.pve.control("lock", vmid=vm["vmid"], lock=None)
        assert play.wait() == 0
    assert read_record(Path(env["PLAY_RECORD"]), 0, "").result["adopted"] is True


def test_a_create_fails_with_vm_locked_at_its_timeout_if_the_clone_lock_persists(bench: Bench) -> None:
    vm = bench.add_vm(config={"description": "debian-12 cloud image"})
    bench.pve.control("lock", vmid=vm["vmid"], lock="clone")
    done, changes = bench.changing_requests(lambda: bench.play("create", {**vm, "timeout_s": 2}))
    assert (done.code, changes) == ("VM_LOCKED", [])


def test_a_vm_that_is_migrated_during_the_wait_for_its_clone_is_found_on_its_new_node(bench: Bench) -> None:
    vm = bench.add_vm(config={"description": "debian-12 cloud image"})
    bench.pve.control("lock", vmid=vm["vmid"], lock="clone")
    bench.pve.reset_request_log()
    env = bench.environment()
    with subprocess.Popen(
        bench.command("create", {**vm, "node": "pve1"}), env=env, cwd=ROOT, stdout=subprocess.DEVNULL
    ) as play:
        while f"/nodes/pve1/qemu/{vm['vmid']}/pending" not in [entry["path"] for entry in bench.pve.request_log()]:
            assert play.poll() is None
            time.sleep(0.05)
        bench.pve.control("move", vmid=vm["vmid"], node="pve2")
        bench.pve.control("lock", vmid=vm["vmid"], lock=None)
        assert play.wait() == 0
    result = read_record(Path(env["PLAY_RECORD"]), 0, "").result
    assert (result["adopted"], result["node"]) == (True, "pve2")


def test_a_failed_clone_that_leaves_its_lock_has_the_error_code_of_its_proxmox_tasks_message(bench: Bench) -> None:
    """The lock never ends, so the play waits until its deadline, and the outcome does not depend on timing."""
    bench.pve.fail_task("qmclone", "clone failed: rbd error: rbd: listing images failed", leaves_lock="clone")
    vm = bench.vm(timeout_s=10)
    failed = bench.play("create", vm)
    assert (failed.code, bench.guest(vm)["lock"]) == ("STORAGE_UNAVAILABLE", "clone"), failed.message


def test_a_create_killed_during_the_clone_results_in_one_vm(bench: Bench) -> None:
    vm = bench.vm()
    bench.pve.control("time_scale", scale=0.5)
    bench.pve.reset_request_log()
    play = subprocess.Popen(
        bench.command("create", vm),
        env=bench.environment(),
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    while not bench.pve.changing_requests():
        assert play.poll() is None
        time.sleep(0.05)
    os.killpg(play.pid, signal.SIGKILL)
    play.wait()
    assert bench.guest(vm)["lock"] == "clone"
    done = bench.play("create", vm)
    assert (done.rc, done.result["adopted"], bench.guest(vm)["lock"]) == (0, True, None), done.output
    clones = [entry for entry in bench.pve.changing_requests() if entry["path"].endswith("/clone")]
    assert len(clones) == 1


def test_a_lost_response_to_the_clone_request_causes_no_second_clone(bench: Bench) -> None:
    vm = bench.vm()
    bench.pve.fail("POST", "/nodes/pve1/qemu/9000/clone", status=0, after=True)
    done, changes = bench.changing_requests(lambda: bench.play("create", vm))
    assert (done.rc, sum(change.endswith("/clone") for change in changes)) == (0, 1), done.output


def test_a_lost_response_to_a_configuration_change_does_not_fail_the_update(bench: Bench) -> None:
    vm = bench.add_vm()
    bench.pve.fail("PUT", f"/nodes/pve1/qemu/{vm['vmid']}/config", status=0, after=True)
    done = bench.play("update", {**vm, "cores": 8})
    assert (done.rc, done.result["cores"]) == (0, 8), done.output


def test_a_configuration_change_that_proxmox_did_not_receive_fails_the_update(bench: Bench) -> None:
    vm = bench.add_vm()
    bench.pve.fail("PUT", f"/nodes/pve1/qemu/{vm['vmid']}/config", status=0)
    assert bench.play("update", {**vm, "cores": 8}).code == "PVE_UNREACHABLE"


def test_502_responses_during_the_wait_for_the_clone_do_not_fail_the_create(bench: Bench) -> None:
    vm = bench.vm()
    bench.pve.control("time_scale", scale=0.3)
    for resource in ("pending", "status/current"):
        path = f"/nodes/pve1/qemu/{vm['vmid']}/{resource}"
        bench.pve.fail("GET", path, status=502, text="Bad Gateway", times=2)
    assert bench.play("create", vm).rc == 0


def test_a_create_after_its_earlier_clone_was_removed_succeeds(bench: Bench) -> None:
    vm = bench.add_vm(config={"description": "debian-12 cloud image"})
    bench.pve.control("lock", vmid=vm["vmid"], lock="clone")
    bench.pve.control("remove", vmid=vm["vmid"])
    done = bench.play("create", vm)
    assert (done.rc, done.result["adopted"]) == (0, False)


def test_a_lost_clone_request_is_not_explained_by_the_clone_of_another_job(bench: Bench) -> None:
    """Another job clones the template after our first look-up. Its Proxmox task is as new as our clone's would be."""
    vm_of_other_job, vm = bench.vm(), bench.vm(timeout_s=10)
    bench.pve.control("task_seconds", type="qmclone", seconds=15)
    bench.pve.control("time_scale", scale=1)
    bench.pve.reset_request_log()
    bench.pve.fail("POST", "/nodes/*/qemu/9000/clone", status=0, delay_s=4)
    with ThreadPoolExecutor(1) as pool:
        create = pool.submit(bench.play, "create", vm)
        while not bench.pve.changing_requests():
            time.sleep(0.05)
        assert bench.play("create", vm_of_other_job).rc == 0
        done = create.result()
    bench.pve.control("task_seconds", type="qmclone", seconds=10)
    assert done.code == "PVE_UNREACHABLE", done.output
    assert bench.pve.guest(vm["vmid"]) is None
