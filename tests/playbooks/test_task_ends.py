"""What an action concludes from the end of its Proxmox task, run by hand and by the agent."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from both_ways import Play
from play_bench import ACTIONS, Bench

NOISE = [f"line {n}" for n in range(100)]
MIGRATION_ERROR = "2026-11-27 04:00:01 ERROR: migration aborted (duration 00:00:01): storage 'ceph' is not online"

#: The action, its variables; its Proxmox task's type, exit status and last log lines; the action's error code.
ENDS: list[tuple[str, dict[str, Any], str, str, list[str], str]] = [
    ("migrate", {"target_node": "pve2"}, "qmigrate", "migration aborted", [MIGRATION_ERROR], "STORAGE_UNAVAILABLE"),
    (
        "start",
        {},
        "qmstart",
        "start failed: QEMU exited with code 1",
        ["kvm: cannot set up guest memory 'pc.ram': Cannot allocate memory"],
        "CAPACITY",
    ),
    (
        "backup",
        {"backup_storage": "backups"},
        "vzdump",
        "unexpected status",
        ["ERROR: can't acquire lock '/var/run/vzdump.lock' - got timeout"],
        "VM_LOCKED",
    ),
    ("start", {}, "qmstart", "unexpected status", [], "PVE_TIMEOUT"),
    # These lines contain words of an error, but they report a step, not the cause of the end.
    *(
        (action, variables, task_type, "unexpected status", [line], "PVE_TIMEOUT")
        for action, variables, task_type, line in (
            ("create", {}, "qmclone", "  WARNING: You have not turned on protection against running out of space."),
            ("start", {}, "qmstart", "kvm: warning: Could not find a free device, out of space"),
            ("stop", {}, "qmshutdown", "VM quit/powerdown failed - terminating now with SIGTERM"),
            ("resize", {"disk_gib": 20}, "resize", "  WARNING: the volume group is running out of space"),
            (
                "migrate",
                {"target_node": "pve2"},
                "qmigrate",
                "2026-11-27 04:00:01 starting online/live migration on unix",
            ),
            ("backup", {"backup_storage": "backups"}, "vzdump", "INFO: mode failure - feature is not supported"),
            ("snapshot", {}, "qmsnapshot", "  WARNING: the thin pool is running out of space"),
            ("delete", {}, "qmdestroy", "WARN: base volume is still in use by linked clones"),
        )
    ),
    ("start", {}, "qmstart", "start failed: QEMU exited with code 1", ["half of a line"], "TASK_FAILED"),
    (
        "start",
        {},
        "qmstart",
        "unable to open file '/etc/pve/nodes/pve1/qemu-server/1.conf.tmp.7' - Permission denied",
        [],
        "PVE_NO_QUORUM",
    ),
]


@pytest.mark.parametrize("end", ENDS, ids=[f"{end[0]}-{end[5]}" for end in ENDS])
def test_the_code_of_a_failed_proxmox_task_is_that_of_its_cause(
    bench: Bench, play: Play, end: tuple[str, dict[str, Any], str, str, list[str], str]
) -> None:
    action, variables, task_type, status, log, code = end
    vm = bench.vm() if action == "create" else bench.add_vm(status="running" if action == "stop" else "stopped")
    bench.pve.fail_task(task_type, status, log=NOISE + log, vmid=vm["vmid"])
    assert play(action, {**vm, **variables}).code == code


def test_a_move_of_a_disk_that_ends_with_warnings_succeeds(bench: Bench, play: Play) -> None:
    """The module `proxmox_disk` reports every status but OK as a failure."""
    vm = bench.add_vm()
    bench.pve.fail_task("qmmove", "WARNINGS: 1", vmid=vm["vmid"], after=True)
    done = play("update", {**vm, "disks": [{"disk": "scsi0", "storage": "ceph"}]})
    assert (done.message, bench.guest(vm)["config"]["scsi0"].partition(":")[0]) == ("", "ceph")


def test_a_repeated_deletion_of_a_vm_whose_deletion_was_interrupted_fails_with_vm_half_destroyed(
    bench: Bench, play: Play
) -> None:
    vm = bench.add_vm()
    text = "cfs-lock 'file-user_cfg' error: got lock request timeout"
    bench.pve.fail_task("qmdestroy", text, vmid=vm["vmid"], leaves_lock="destroyed")
    assert play("delete", vm).code == "VM_LOCKED"
    assert play("delete", vm).code == "VM_HALF_DESTROYED"


def test_a_create_that_does_not_get_the_storages_lock_in_time_can_be_repeated(bench: Bench, play: Play) -> None:
    """Proxmox has four texts for this, and removes the clone. So the job can be repeated with the same VMID."""
    bench.pve.control("storage_locks", every=1)
    vm = bench.vm()
    assert [play("create", vm).code for _ in range(4)] == ["VM_LOCKED"] * 4
    bench.pve.control("storage_locks", every=0)
    assert play("create", vm).message == ""


def test_a_failed_clone_of_proxmox_8_is_found_if_it_is_the_only_new_proxmox_task(bench: Bench, play: Play) -> None:
    """Proxmox 8 does not log which VM the Proxmox task of a clone creates."""
    bench.pve.control("version", version="8.4.1")
    try:
        bench.pve.fail_task("qmclone", "clone failed: No space left on device")
        assert play("create", bench.vm()).code == "CAPACITY"
    finally:
        bench.pve.control("version", version="9.0.10")


def test_a_start_whose_proxmox_task_vanishes_from_the_list_succeeds(bench: Bench) -> None:
    vm = bench.add_vm()
    bench.pve.control("time_scale", scale=1)
    with ThreadPoolExecutor() as pool:
        started = pool.submit(bench.play, "start", vm)
        while not [task for task in bench.pve.tasks() if task["id"] == str(vm["vmid"])]:
            time.sleep(0.02)
        time.sleep(1)  # the look-up has read the Proxmox task
        bench.pve.control("forget_tasks", vmid=vm["vmid"])
        done = started.result()
    assert (done.rc, bench.guest(vm)["status"]) == (0, "running"), done.output


#: The type of the Proxmox task that each action starts first.
TASK_TYPES = {
    **{"create": "qmclone", "start": "qmstart", "stop": "qmshutdown", "restart": "qmreboot", "update": "qmmove"},
    **{"resize": "resize", "migrate": "qmigrate", "snapshot": "qmsnapshot", "rollback": "qmrollback"},
    **{"backup": "vzdump", "delete": "qmdestroy"},
}
REQUESTS: dict[str, dict[str, Any]] = {
    "update": {"disks": [{"disk": "scsi0", "storage": "ceph"}]},
    "resize": {"disk_gib": 9},
    "migrate": {"target_node": "pve2"},
    "rollback": {"snapshot": "before"},
    "backup": {"backup_storage": "backups"},
}


@pytest.mark.parametrize("action", ACTIONS)
def test_the_failed_proxmox_task_of_another_token_is_not_the_error_of_an_action(
    bench: Bench, pve_version: str, action: str
) -> None:
    """A login with Sys.Audit sees the Proxmox tasks of every user and token."""
    vm = (
        bench.vm()
        if action == "create"
        else bench.add_vm(status="running" if action in ("stop", "restart") else "stopped")
    )
    if action == "rollback":
        assert bench.play("snapshot", {**vm, "snapshot": "before"}).rc == 0
    # The Proxmox task of a clone has the VMID of the template.
    other_task = {"vmid": 9000 if action == "create" else vm["vmid"], "type": TASK_TYPES[action], "node": "pve1"}
    bench.pve.control("grant", path="/nodes", privilege="Sys.Audit")
    bench.pve.control("hold_change", number=1)
    with ThreadPoolExecutor() as pool:
        started = pool.submit(bench.play, action, {**vm, **REQUESTS.get(action, {})})
        try:
            while not bench.pve.is_holding():
                assert not started.done(), started.result().output
                time.sleep(0.02)
            for user in ("smith@pve!other", "root@pam"):
                bench.pve.control("add_task", **other_task, user=user, exitstatus="start failed: x")
        finally:
            bench.pve.control("clear_faults")
        done = started.result()
    bench.pve.control("revoke", path="/nodes", privilege="Sys.Audit")
    assert done.rc == 0, (pve_version, done.output)
    assert {upid.split(":")[7] for upid in done.result["upids"]} == {"smith@pve!job"}


def test_the_proxmox_task_of_a_start_is_found_on_the_old_node_of_a_vm_that_moved(bench: Bench) -> None:
    """A Proxmox task stays on the node that its UPID names."""
    vm = {**bench.add_vm(), "node": "pve1"}
    bench.pve.control("time_scale", scale=1)
    bench.pve.control("task_seconds", type="qmstart", seconds=3)
    bench.pve.fail_task("qmstart", "start failed: no space left: No space left on device", vmid=vm["vmid"])
    timer = threading.Timer(1.5, bench.pve.control, ["move"], {"vmid": vm["vmid"], "node": "pve2"})
    timer.start()
    try:
        assert bench.play("start", vm).code == "CAPACITY"
    finally:
        timer.join()
        bench.pve.control("task_seconds", type="qmstart", seconds=2)


@pytest.mark.parametrize(("action", "task_type"), [("start", "vzstart"), ("delete", "vzdestroy")])
def test_a_proxmox_task_whose_upid_is_in_the_answer_is_not_searched_in_the_list(
    bench: Bench, play: Play, action: str, task_type: str
) -> None:
    """Of community.proxmox's modules, only that for containers returns the UPID."""
    vm = bench.add_container()
    bench.pve.control("time_scale", scale=0.2)
    bench.pve.reset_request_log()
    done = play(action, vm)
    requests = [(entry["method"], entry["path"]) for entry in bench.pve.request_log()]
    change = next(number for number, (method, _path) in enumerate(requests) if method != "GET")
    paths = [path for _method, path in requests[change:]]
    assert (done.message, [upid.split(":")[5] for upid in done.result["upids"]]) == ("", [task_type])
    assert f"/nodes/pve1/tasks/{done.result['upids'][0]}/status" in paths
    assert "/nodes/pve1/tasks" not in paths


def test_a_failed_action_returns_the_proxmox_tasks_that_it_has_started(bench: Bench, play: Play) -> None:
    vm = bench.add_vm()
    bench.pve.fail_task("qmstart", "start failed: QEMU exited with code 1", vmid=vm["vmid"])
    failed = play("start", vm)
    assert failed.code == "TASK_FAILED"
    assert [upid.split(":")[5] for upid in failed.result["upids"]] == ["qmstart"]
