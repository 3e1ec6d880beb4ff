"""Actions that fail: each ends with the right error code, and changes nothing that it must not change."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils.client import connect
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils.cluster import Cluster
from both_ways import Play
from play_bench import ACTIONS, Bench

ACTIONS_ON_EXISTING_VMS = tuple(action for action in ACTIONS if action != "create")


def add_vm_for_action(bench: Bench, action: str, **more: Any) -> dict[str, Any]:
    """Add a VM on which the action would change something; return its variables."""
    vm = bench.add_vm(status="stopped" if action == "start" else "running", **more)
    requests = {
        "update": {"cores": 8},
        "resize": {"disk_gib": 9},
        "migrate": {"target_node": "pve2"},
        "backup": {"backup_storage": "backups"},
    }
    return {**vm, **requests.get(action, {})}


@pytest.mark.parametrize("action", ACTIONS_ON_EXISTING_VMS)
def test_a_reused_vmid_is_never_changed(bench: Bench, action: str) -> None:
    vm = add_vm_for_action(bench, action)
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
    vm = add_vm_for_action(bench, action)
    bench.pve.control("configure", vmid=vm["vmid"], values=values)
    done, changes = bench.changing_requests(lambda: bench.play(action, vm))
    assert (done.code, changes) == (code, [])


@pytest.mark.by_hand
def test_a_vm_with_two_markers_belongs_to_no_service(bench: Bench) -> None:
    vm = bench.add_vm(status="running")
    two_markers = f"smith-uid={vm['service_id']}\nsmith-uid=11111111-2222-4333-8444-555555555555"
    bench.pve.control("configure", vmid=vm["vmid"], values={"description": two_markers})
    done, changes = bench.changing_requests(lambda: bench.play("delete", vm))
    assert (done.code, changes) == ("VM_IDENTITY_MISMATCH", [])


def test_a_partial_clone_without_a_marker_is_deleted_by_its_reserved_name_only(bench: Bench) -> None:
    vm = add_vm_for_action(bench, "delete", config={"description": "debian-12 cloud image", "tags": "image"})
    for request in (vm, {**vm, "half_made": True, "name": "web-00000000"}):
        done, changes = bench.changing_requests(lambda request=request: bench.play("delete", request))
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
def test_the_text_of_a_proxmox_task_cannot_choose_the_error_code(bench: Bench, text: str) -> None:
    vm = bench.add_vm()
    bench.pve.fail_task("qmstart", text, vmid=vm["vmid"])
    assert bench.play("start", vm).message == f"TASK_FAILED: {text}"


def test_a_start_whose_response_is_lost_succeeds(bench: Bench) -> None:
    vm = bench.add_vm()
    bench.pve.fail("POST", f"/nodes/pve1/qemu/{vm['vmid']}/status/start", status=0, after=True)
    done = bench.play("start", vm)
    assert (done.rc, done.result["status"]) == (0, "running"), done.output


@pytest.mark.by_hand
def test_the_error_names_a_missing_privilege(bench: Bench) -> None:
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
    """The module proxmox_snap returns "ok, unchanged" in this case."""
    vm = bench.add_vm()
    done, changes = bench.changing_requests(lambda: bench.play("rollback", {**vm, "snapshot": "never"}))
    assert (done.code, changes) == ("NOT_FOUND", [])


IMPOSSIBLE_CREATES = {
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


@pytest.mark.parametrize("request_name", IMPOSSIBLE_CREATES)
def test_an_impossible_create_is_refused_before_any_change(bench: Bench, request_name: str) -> None:
    values, code = IMPOSSIBLE_CREATES[request_name]
    done, changes = bench.changing_requests(lambda: bench.play("create", bench.vm(**values)))
    assert (done.code, changes) == (code, [])


def test_a_cloud_init_user_needs_a_cloud_init_drive(bench: Bench) -> None:
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
    assert "too little time was left to ask again (attempt 1 of 4)" in done.message


@pytest.mark.proxmox(
    behaviour="595: a request was not sent to its node; 596 to 599: it was sent, and no answer came in time",
    versions="8, 9",
    source="pve-http-server: PVE/APIServer/AnyEvent.pm, proxy_request",
    reaction="looks the guest up; only then, 595 is `NODE_DOWN` and the others are `PVE_TIMEOUT`",
)
@pytest.mark.parametrize("status", [595, 596, 599, 0])
def test_a_start_whose_answer_is_lost_by_a_proxy_of_proxmox_succeeds(bench: Bench, play: Play, status: int) -> None:
    """The request was executed, but the module gets an answer that does not show this."""
    vm = bench.add_vm()
    bench.pve.fail("POST", f"/nodes/pve1/qemu/{vm['vmid']}/status/start", status=status, text="x", after=True)
    done = play("start", vm)
    assert (done.code, bench.guest(vm)["status"]) == ("", "running")


def test_missing_settings_end_in_pve_auth(bench: Bench) -> None:
    assert bench.play("start", bench.add_vm(), PROXMOX_HOST="").code == "PVE_AUTH"


def test_a_certificate_of_an_unknown_ca_ends_in_pve_tls(bench: Bench) -> None:
    """The modules of community.proxmox do not verify certificates by default."""
    done, changes = bench.changing_requests(
        lambda: bench.play("start", bench.add_vm(), PROXMOX_CA_BUNDLE="", PROXMOX_VALIDATE_CERTS="")
    )
    assert (done.code, changes) == ("PVE_TLS", [])


def test_a_closed_port_ends_in_pve_unreachable(bench: Bench) -> None:
    assert bench.play("start", bench.add_vm(), PROXMOX_PORT="1").code == "PVE_UNREACHABLE"


def test_a_proxmox_task_of_another_user_is_not_taken_for_one_of_the_change(bench: Bench) -> None:
    vm = bench.add_vm()
    env = bench.pve.env()
    root = {"api_host": env["PROXMOX_HOST"], "api_port": env["PROXMOX_PORT"], "api_user": "root@pam"}
    password = json.loads((bench.pve.folder / "settings.json").read_text())["root_password"]
    root_api = connect({**root, "api_password": password}, env["PROXMOX_CA_BUNDLE"])
    upid = root_api.nodes("pve1").qemu(vm["vmid"]).status.start.post()
    assert [task["upid"] for task in Cluster(root_api, "qemu", "root@pam").tasks("pve1", vm["vmid"])] == [upid]
    assert Cluster(root_api, "qemu", env["PROXMOX_USER"]).tasks("pve1", vm["vmid"]) == []
