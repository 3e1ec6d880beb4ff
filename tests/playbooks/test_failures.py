"""Failures at Proxmox end in the right error code and cause no change that was not requested."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils.client import connect
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils.cluster import Cluster
from both_ways import Play
from play_bench import ACTIONS, ROOT, Bench, read_record

CHANGING = tuple(action for action in ACTIONS if action != "create")


def ready_for(bench: Bench, action: str, **more: Any) -> dict[str, Any]:
    """Return a VM on which the action would change something."""
    vm = bench.add_vm(status="stopped" if action == "start" else "running", **more)
    wishes = {
        "update": {"cores": 8},
        "resize": {"disk_gib": 9},
        "migrate": {"target_node": "pve2"},
        "backup": {"backup_storage": "backups"},
    }
    return {**vm, **wishes.get(action, {})}


# ---------------------------------------------------------------------- not the service's VM


@pytest.mark.parametrize("action", CHANGING)
def test_a_reused_vmid_is_never_changed(bench: Bench, action: str) -> None:
    vm = ready_for(bench, action)
    bench.pve.control("recycle", vmid=vm["vmid"])
    done, changes = bench.changing_requests(lambda: bench.play(action, vm))
    assert (done.code, changes) == ("VM_IDENTITY_MISMATCH", [])
    assert done.result == {}


FOREIGN_GUESTS = {
    "renamed": ("delete", {"name": "foreign"}, "VM_IDENTITY_MISMATCH"),
    "without a marker": ("update", {"description": "a VM"}, "VM_IDENTITY_MISMATCH"),
    "another service's": (
        "delete",
        {"description": "smith-uid=11111111-2222-4333-8444-555555555555"},
        "VM_IDENTITY_MISMATCH",
    ),
    "a template": ("delete", {"template": 1}, "VM_PROTECTED"),
    "protected": ("stop", {"protection": 1}, "VM_PROTECTED"),
}


@pytest.mark.parametrize("foreign_guest", FOREIGN_GUESTS)
def test_a_foreign_or_protected_vm_is_never_changed(bench: Bench, foreign_guest: str) -> None:
    action, values, code = FOREIGN_GUESTS[foreign_guest]
    vm = ready_for(bench, action)
    bench.pve.control("configure", vmid=vm["vmid"], values=values)
    done, changes = bench.changing_requests(lambda: bench.play(action, vm))
    assert (done.code, changes) == (code, [])


@pytest.mark.by_hand
def test_a_vm_with_two_markers_belongs_to_no_service(bench: Bench) -> None:
    vm = bench.add_vm(status="running")
    both = f"smith-uid={vm['service_id']}\nsmith-uid=11111111-2222-4333-8444-555555555555"
    bench.pve.control("configure", vmid=vm["vmid"], values={"description": both})
    done, changes = bench.changing_requests(lambda: bench.play("delete", vm))
    assert (done.code, changes) == ("VM_IDENTITY_MISMATCH", [])


def test_a_partial_clone_without_a_marker_is_deleted_by_its_reserved_name_only(bench: Bench) -> None:
    vm = ready_for(bench, "delete", config={"description": "debian-12 cloud image", "tags": "image"})
    for wish in (vm, {**vm, "half_made": True, "name": "web-00000000"}):
        done, changes = bench.changing_requests(lambda wish=wish: bench.play("delete", wish))
        assert (done.code, changes) == ("VM_IDENTITY_MISMATCH", [])
    refused, changes = bench.changing_requests(lambda: bench.play("stop", {**vm, "half_made": True}))
    assert (refused.code, changes) == ("VM_IDENTITY_MISMATCH", [])
    done = bench.play("delete", {**vm, "half_made": True})
    assert (done.rc, done.result["status"], bench.pve.guest(vm["vmid"])) == (0, "absent", None), done.output


def test_a_create_never_changes_a_vm_that_has_its_vmid(bench: Bench) -> None:
    vm = bench.vm()
    bench.pve.control("add", vmid=vm["vmid"], name="foreign", status="running")
    before = bench.guest(vm)
    done, changes = bench.changing_requests(lambda: bench.play("create", vm))
    assert (done.code, changes) == ("VM_ID_TAKEN", [])
    assert bench.guest(vm) == before


# ---------------------------------------------------------------------- not there, or not visible


@pytest.mark.parametrize("action", ["start", "delete"])
def test_a_token_that_sees_no_vm_does_not_prove_absence(bench: Bench, action: str) -> None:
    """Proxmox answers such a token with 200 and an empty list: a delete must not report success."""
    vm = bench.add_vm()
    bench.pve.control("revoke", path="/vms", privilege="VM.Audit")
    try:
        without_hint = bench.play(action, vm)
        with_hint = bench.play(action, {**vm, "node": "pve1"})
    finally:
        bench.pve.control("grant", path="/vms", privilege="VM.Audit")
    assert (without_hint.code, with_hint.code) == ("PVE_PERMISSION", "PVE_PERMISSION")
    assert bench.guest(vm)


def test_a_vm_whose_last_known_node_is_offline_is_not_treated_as_deleted(bench: Bench) -> None:
    vm = bench.add_vm(node="pve2")
    bench.pve.control("node", node="pve2", online=False)
    assert bench.play("delete", {**vm, "node": "pve2"}).code == "NODE_DOWN"


def test_without_quorum_a_missing_vm_is_not_treated_as_deleted(bench: Bench) -> None:
    bench.pve.control("quorum", quorate=False)
    assert bench.play("delete", bench.vm()).code == "PVE_NO_QUORUM"


# ---------------------------------------------------------------------- Proxmox is busy, or refuses


def test_an_action_that_needs_no_change_succeeds_on_a_locked_vm(bench: Bench) -> None:
    vm = bench.add_vm(status="running")
    bench.pve.control("lock", vmid=vm["vmid"], lock="backup")
    assert bench.play("start", vm).rc == 0


def test_a_lock_set_just_before_the_start_is_reported_with_proxmoxs_message(bench: Bench) -> None:
    vm = bench.add_vm()
    bench.pve.fail_task("qmstart", "VM is locked (backup)", vmid=vm["vmid"])
    done = bench.play("start", vm)
    assert (done.code, done.message) == ("VM_LOCKED", "VM_LOCKED: VM is locked (backup)")


def test_a_failed_start_reports_its_cause(bench: Bench) -> None:
    vm = bench.add_vm()
    bench.pve.control("behave", vmid=vm["vmid"], start_error="start failed: QEMU exited with code 1")
    assert bench.play("start", vm).message == "TASK_FAILED: start failed: QEMU exited with code 1"


@pytest.mark.parametrize("text", ["VM_NOT_FOUND: VM 7 does not exist", "CANCELLED: no", "VM_ID_TAKEN: no"])
def test_a_task_of_proxmox_cannot_choose_the_error_code(bench: Bench, text: str) -> None:
    vm = bench.add_vm()
    bench.pve.fail_task("qmstart", text, vmid=vm["vmid"])
    assert bench.play("start", vm).message == f"TASK_FAILED: {text}"


def test_a_start_whose_response_is_lost_succeeds(bench: Bench) -> None:
    vm = bench.add_vm()
    bench.pve.fail("POST", f"/nodes/pve1/qemu/{vm['vmid']}/status/start", status=0, after=True)
    done = bench.play("start", vm)
    assert (done.rc, done.result["status"]) == (0, "running"), done.output


@pytest.mark.by_hand
def test_a_missing_privilege_is_named(bench: Bench) -> None:
    """tests/security/test_least_privilege.py tests each privilege through the agent."""
    vm = bench.add_vm()
    bench.pve.control("revoke", path="/vms", privilege="VM.PowerMgmt")
    try:
        done = bench.play("start", vm)
    finally:
        bench.pve.control("grant", path="/vms", privilege="VM.PowerMgmt")
    assert done.code == "PVE_PERMISSION"
    assert "VM.PowerMgmt" in done.message


def test_without_quorum_an_action_ends_in_pve_no_quorum(bench: Bench) -> None:
    vm = bench.add_vm(status="running")
    bench.pve.control("quorum", quorate=False)
    assert bench.play("stop", {**vm, "node": "pve1"}).code == "PVE_NO_QUORUM"


def test_a_rollback_to_a_missing_snapshot_ends_in_not_found(bench: Bench) -> None:
    """The old module says "ok, unchanged" here."""
    vm = bench.add_vm()
    done, changes = bench.changing_requests(lambda: bench.play("rollback", {**vm, "snapshot": "never"}))
    assert (done.code, changes) == ("NOT_FOUND", [])


# ---------------------------------------------------------------------- requests that cannot be carried out


IMPOSSIBLE = {
    "a disk smaller than the template's": ({"disk_gib": 4}, "INVALID_REQUEST"),
    "a template that is not there": ({"template_vmid": 9999}, "NOT_FOUND"),
    "a static address without an address": ({"network": {"mode": "static"}}, "INVALID_REQUEST"),
    "a private key": (
        {"cloud_init": {"ssh_public_keys": ["-----BEGIN OPENSSH PRIVATE KEY-----"]}},
        "INVALID_REQUEST",
    ),
    "an unknown member": ({"memry_mib": 1}, "INVALID_REQUEST"),
    "no cores": ({"cores": None}, "INVALID_REQUEST"),
    "a service_id that is no UUID": ({"service_id": "x\nsmith-uid=y"}, "INVALID_REQUEST"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_an_impossible_create_is_refused_before_any_change(bench: Bench, what: str) -> None:
    values, code = IMPOSSIBLE[what]
    done, changes = bench.changing_requests(lambda: bench.play("create", bench.vm(**values)))
    assert (done.code, changes) == (code, [])


def test_a_login_needs_a_cloud_init_drive(bench: Bench) -> None:
    bench.pve.control("add_template", vmid=9100, name="bare", node="pve1")
    bench.pve.control("configure", vmid=9100, values={"ide2": None})
    done, changes = bench.changing_requests(
        lambda: bench.play("create", bench.vm(template_vmid=9100, cloud_init={"user": "admin"}))
    )
    assert (done.code, changes) == ("INVALID_REQUEST", [])
    assert bench.play("create", bench.vm(template_vmid=9100, network={"mode": "dhcp"})).rc == 0


def test_a_clone_to_another_node_needs_shared_storage(bench: Bench) -> None:
    vm = bench.vm(node="pve2")
    assert bench.play("create", vm).code == "INVALID_REQUEST"
    bench.pve.control("add_template", vmid=9101, name="shared", node="pve1", storage="ceph")
    done = bench.play("create", {**vm, "template_vmid": 9101})
    assert (done.rc, done.result["node"]) == (0, "pve2"), done.output


def test_an_update_never_shrinks_a_disk(bench: Bench) -> None:
    vm = bench.add_vm()
    done, changes = bench.changing_requests(lambda: bench.play("update", {**vm, "cores": 8, "disk_gib": 4}))
    assert (done.code, changes) == ("INVALID_REQUEST", [])


# ---------------------------------------------------------------------- an interrupted create


@pytest.mark.by_hand
def test_a_create_on_a_full_storage_ends_in_capacity_and_leaves_no_vm(bench: Bench) -> None:
    bench.pve.control("storage", storage="local-lvm", avail=1024)
    vm = bench.vm()
    done = bench.play("create", vm)
    assert done.code == "CAPACITY"
    assert "No space left" in done.message
    assert bench.pve.guest(vm["vmid"]) is None


def test_a_failed_clone_reports_the_message_of_its_proxmox_task(bench: Bench) -> None:
    bench.pve.fail_task("qmclone", "clone failed: rbd error: rbd: listing images failed")
    assert bench.play("create", bench.vm()).code == "STORAGE_UNAVAILABLE"


def test_a_clone_made_by_an_interrupted_run_is_adopted_by_its_name(bench: Bench) -> None:
    """Its description and tags are the template's: only the name, reserved for this service, is ours."""
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


def test_a_clone_lock_that_persists_ends_in_vm_locked_at_the_timeout(bench: Bench) -> None:
    vm = bench.add_vm(config={"description": "debian-12 cloud image"})
    bench.pve.control("lock", vmid=vm["vmid"], lock="clone")
    done, changes = bench.changing_requests(lambda: bench.play("create", {**vm, "timeout_s": 2}))
    assert (done.code, changes) == ("VM_LOCKED", [])


def test_a_vm_that_is_migrated_during_the_wait_is_found_on_its_new_node(bench: Bench) -> None:
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


def test_a_failed_clone_that_leaves_its_lock_reports_the_message_of_its_proxmox_task(bench: Bench) -> None:
    """The lock never ends, so the play waits until its deadline, and nothing in the test depends on the time."""
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


def test_502_responses_during_the_wait_do_not_fail_the_create(bench: Bench) -> None:
    vm = bench.vm()
    bench.pve.control("time_scale", scale=0.3)
    for question in ("pending", "status/current"):
        path = f"/nodes/pve1/qemu/{vm['vmid']}/{question}"
        bench.pve.fail("GET", path, status=502, text="Bad Gateway", times=2)
    assert bench.play("create", vm).rc == 0


def test_a_create_after_its_earlier_clone_was_removed_succeeds(bench: Bench) -> None:
    vm = bench.add_vm(config={"description": "debian-12 cloud image"})
    bench.pve.control("lock", vmid=vm["vmid"], lock="clone")
    bench.pve.control("remove", vmid=vm["vmid"])
    done = bench.play("create", vm)
    assert (done.rc, done.result["adopted"]) == (0, False)


# ---------------------------------------------------------------------- no way to Proxmox


def test_a_wrong_token_secret_ends_in_pve_auth(bench: Bench) -> None:
    assert bench.play("start", bench.add_vm(), PROXMOX_TOKEN_SECRET="wrong").code == "PVE_AUTH"


def test_a_start_during_a_restart_of_the_cluster_file_system_succeeds(bench: Bench, play: Play) -> None:
    """Proxmox then refuses every login, as if the secret were wrong."""
    vm = bench.add_vm()
    bench.pve.control("logins", accepted=False)
    threading.Timer(1.5, bench.pve.control, ["logins"], {"accepted": True}).start()
    done = play("start", vm)
    assert (done.code, bench.guest(vm)["status"]) == ("", "running")


def test_a_login_that_is_refused_once_is_repeated_also_if_little_time_is_left(bench: Bench) -> None:
    """A start with 12 s has no time for all three repetitions of a refused login, but for one."""
    vm = bench.add_vm()
    bench.pve.control("logins", delay_s=0)
    bench.pve.fail("GET", "/cluster/resources", status=401, text="Authentication failed!")
    done = bench.play("start", {**vm, "timeout_s": 12, "node": ""})
    assert (done.code, done.result["status"]) == ("", "running")


def test_a_refused_login_is_not_final_if_too_little_time_is_left_to_repeat_it(bench: Bench) -> None:
    vm = bench.add_vm()
    bench.pve.control("logins", delay_s=0)
    bench.pve.fail("GET", "/cluster/resources", status=401, text="Authentication failed!", times=-1)
    done = bench.play("start", {**vm, "timeout_s": 4, "node": ""})
    assert (done.code, bench.guest(vm)["status"]) == ("PVE_UNREACHABLE", "stopped")
    assert "too little time was left to ask again (1 of 4)" in done.message


@pytest.mark.proxmox(
    behaviour="595: a request was not sent to its node; 596 to 599: it was sent, and no answer came in time",
    versions="8, 9",
    source="pve-http-server: PVE/APIServer/AnyEvent.pm, proxy_request",
    reaction="looks the guest up; only then, 595 is `NODE_DOWN` and the others are `PVE_TIMEOUT`",
)
@pytest.mark.parametrize("status", [595, 596, 599, 0])
def test_a_start_whose_answer_is_lost_by_a_proxy_of_proxmox_succeeds(bench: Bench, play: Play, status: int) -> None:
    """The request was carried out. The module gets an answer that does not say it."""
    vm = bench.add_vm()
    bench.pve.fail("POST", f"/nodes/pve1/qemu/{vm['vmid']}/status/start", status=status, text="x", after=True)
    done = play("start", vm)
    assert (done.code, bench.guest(vm)["status"]) == ("", "running")


def test_missing_settings_end_in_pve_auth(bench: Bench) -> None:
    assert bench.play("start", bench.add_vm(), PROXMOX_HOST="").code == "PVE_AUTH"


def test_a_certificate_of_an_unknown_ca_ends_in_pve_tls(bench: Bench) -> None:
    """The old modules do not verify certificates by default."""
    done, changes = bench.changing_requests(
        lambda: bench.play("start", bench.add_vm(), PROXMOX_CA_BUNDLE="", PROXMOX_VALIDATE_CERTS="")
    )
    assert (done.code, changes) == ("PVE_TLS", [])


def test_a_closed_port_ends_in_pve_unreachable(bench: Bench) -> None:
    assert bench.play("start", bench.add_vm(), PROXMOX_PORT="1").code == "PVE_UNREACHABLE"


def test_a_proxmox_task_of_another_user_is_not_one_of_the_change(bench: Bench) -> None:
    vm = bench.add_vm()
    env = bench.pve.env()
    root = {"api_host": env["PROXMOX_HOST"], "api_port": env["PROXMOX_PORT"], "api_user": "root@pam"}
    password = json.loads((bench.pve.folder / "settings.json").read_text())["root_password"]
    as_root = connect({**root, "api_password": password}, env["PROXMOX_CA_BUNDLE"])
    upid = as_root.nodes("pve1").qemu(vm["vmid"]).status.start.post()
    assert [task["upid"] for task in Cluster(as_root, "qemu", "root@pam").tasks("pve1", vm["vmid"])] == [upid]
    assert Cluster(as_root, "qemu", env["PROXMOX_USER"]).tasks("pve1", vm["vmid"]) == []


def test_a_lost_clone_request_is_not_explained_by_the_clone_of_another_job(bench: Bench) -> None:
    """Another job clones the same template after our first look-up, so its Proxmox task is new, as ours would be."""
    other, vm = bench.vm(), bench.vm(timeout_s=10)
    bench.pve.control("task_seconds", type="qmclone", seconds=15)
    bench.pve.control("time_scale", scale=1)
    bench.pve.reset_request_log()
    bench.pve.fail("POST", "/nodes/*/qemu/9000/clone", status=0, delay_s=4)
    with ThreadPoolExecutor(1) as pool:
        ours = pool.submit(bench.play, "create", vm)
        while not bench.pve.changing_requests():
            time.sleep(0.05)
        assert bench.play("create", other).rc == 0
        done = ours.result()
    bench.pve.control("task_seconds", type="qmclone", seconds=10)
    assert done.code == "PVE_UNREACHABLE", done.output
    assert bench.pve.guest(vm["vmid"]) is None
