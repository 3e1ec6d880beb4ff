"""Playbooks on a cluster whose lists are late or incomplete, and on guests that move, have no name yet or use HA."""

from __future__ import annotations

from typing import Any

import pytest
from both_ways import Play
from play_bench import Bench

ALL_NODES = ["pve1", "pve2"]
LAG_S = 10


def make_creation_request(bench: Bench, kind: str) -> dict[str, Any]:
    """Return the variables for the creation of a VM or a container."""
    if kind == "qemu":
        return bench.vm()
    return bench.container(node="pve1", storage="ceph", os_template=bench.place.os_template)


# ---------------------------------------------------------------------- missing facts


@pytest.mark.parametrize("template", [{"template_vmid": 9000}, {"template_vmid": None, "template": "debian-12"}])
def test_a_vm_is_created_while_no_node_sends_statistics(bench: Bench, play: Play, template: dict[str, Any]) -> None:
    bench.pve.control("statistics", silent_nodes=ALL_NODES)
    outcome = play("create", bench.vm(**template))
    assert (outcome.code, outcome.message) == ("", "")
    assert outcome.result["status"] == "stopped"


@pytest.mark.parametrize("kind", ["qemu", "lxc"])
def test_every_action_works_on_a_guest_without_statistics(bench: Bench, kind: str) -> None:
    bench.pve.control("statistics", broadcast_interval_s=LAG_S, silent_nodes=ALL_NODES)
    vm = make_creation_request(bench, kind)
    backup = {**vm, "backup_storage": bench.place.backup_storage}
    for action, request in [("create", vm), ("start", vm), ("restart", vm), ("stop", vm), ("backup", backup)]:
        outcome = bench.play(action, request)
        assert (action, outcome.message) == (action, "")
    assert bench.play("delete", vm).message == ""
    assert bench.pve.guest(vm["vmid"]) is None


def test_a_new_container_is_started_before_the_list_has_its_name(bench: Bench, play: Play) -> None:
    bench.pve.control("statistics", broadcast_interval_s=LAG_S)
    container = make_creation_request(bench, "lxc")
    assert play("create", container).message == ""
    assert play("start", container).result["status"] == "running"


def test_a_missing_vm_is_proven_absent_while_no_node_sends_statistics(bench: Bench, play: Play) -> None:
    bench.pve.control("statistics", silent_nodes=ALL_NODES)
    vm = bench.vm()
    assert play("delete", vm).message == ""
    assert play("start", vm).code == "VM_NOT_FOUND"


def test_a_new_vm_is_not_taken_for_the_removed_guest_that_the_list_shows_with_its_vmid(
    bench: Bench, play: Play
) -> None:
    removed_guest = bench.add_vm(status="running")
    bench.pve.control("statistics", broadcast_interval_s=LAG_S)
    bench.pve.control("remove", vmid=removed_guest["vmid"])
    vm = {**bench.vm(), "vmid": removed_guest["vmid"]}
    outcome = play("create", vm)
    assert (outcome.message, outcome.result["name"], outcome.result["status"]) == ("", vm["name"], "stopped")


# ---------------------------------------------------------------------- a guest that moves


@pytest.mark.parametrize(
    "text",
    [
        "Configuration file 'nodes/pve1/qemu-server/{vmid}.conf' does not exist",
        "unable to find configuration file for VM {vmid} on node 'pve1'",
    ],
)
@pytest.mark.parametrize(
    ("action", "method", "path", "status"),
    [
        ("update", "POST", "config", "stopped"),
        ("start", "POST", "status/start", "stopped"),
        ("restart", "POST", "status/reboot", "running"),
        ("snapshot", "POST", "snapshot", "stopped"),
        ("delete", "DELETE", "", "stopped"),
    ],
)
def test_a_vm_that_moves_before_the_change_is_never_reported_as_missing(  # noqa: PLR0917 - one argument for each column
    bench: Bench, play: Play, action: str, method: str, path: str, status: str, text: str
) -> None:
    vm = bench.add_vm(status=status)
    url = f"/nodes/pve1/qemu/{vm['vmid']}" + (f"/{path}" if path else "")
    for refused_method in {method, "PUT"} if path == "config" else {method}:
        bench.pve.fail(refused_method, url, text=text.format(vmid=vm["vmid"]))
    outcome = play(action, {**vm, "cores": 4, "memory_mib": 4096, "snapshot": "first"})
    assert outcome.code == "PVE_CONFLICT"
    assert bench.pve.guest(vm["vmid"])


@pytest.mark.parametrize(
    ("action", "method", "path", "status", "text"),
    [
        ("start", "POST", "status/start", "stopped", "CT {vmid} already running"),
        ("stop", "POST", "status/*", "running", "CT {vmid} not running"),
        ("restart", "POST", "status/*", "running", "CT {vmid} not running"),
        ("update", "PUT", "config", "stopped", "Configuration file 'nodes/pve1/lxc/{vmid}.conf' does not exist"),
        ("delete", "DELETE", "", "stopped", "Configuration file 'nodes/pve1/lxc/{vmid}.conf' does not exist"),
    ],
)
def test_a_container_that_moves_or_changes_before_the_change_is_looked_up_again(  # noqa: PLR0917 - one for each column
    bench: Bench, play: Play, action: str, method: str, path: str, status: str, text: str
) -> None:
    """On the node that it has left, a container is `not running`: Proxmox does not read its configuration there."""
    vm = bench.add_container(status=status)
    url = f"/nodes/pve1/lxc/{vm['vmid']}" + (f"/{path}" if path else "")
    bench.pve.fail(method, url, text=text.format(vmid=vm["vmid"]))
    outcome = play(action, {**vm, "cores": 4, "memory_mib": 4096})
    assert outcome.code == "PVE_CONFLICT", outcome.message
    assert play(action, {**vm, "cores": 4, "memory_mib": 4096}).message == ""


# ---------------------------------------------------------------------- a clone without a name


def make_slow_clone_request(bench: Bench) -> dict[str, Any]:
    """Return the request for a clone whose only disk is copied for longer than the action may take."""
    if not bench.pve.guest(9200):
        bench.pve.control("add_template", vmid=9200, name="one-disk", node="pve1")
        bench.pve.control("configure", vmid=9200, values={"ide2": None})
    bench.pve.control("time_scale", scale=1)
    bench.pve.control("task_seconds", type="qmclone", seconds=600)
    return bench.vm(template_vmid=9200, timeout_s=8)  # the runner waits 2 s longer than the action


def test_a_clone_that_has_no_name_yet_is_neither_cloned_again_nor_deleted(bench: Bench, play: Play) -> None:
    vm = make_slow_clone_request(bench)
    try:
        first = play("create", vm)
        assert first.code in {"VM_LOCKED", "TASK_TIMEOUT"}
        repeated, requests = bench.changing_requests(lambda: play("create", vm))
        assert (repeated.code, requests) == ("VM_LOCKED", [])
        deleted, requests = bench.changing_requests(lambda: play("delete", {**vm, "half_made": True}))
        assert (deleted.code, requests) == ("VM_LOCKED", [])
    finally:
        bench.pve.control("task_seconds", type="qmclone", seconds=10)


@pytest.mark.proxmox(
    behaviour="the Proxmox task of a linked clone may begin and end between two requests of a client",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, clone_vm",
    reaction="reads the Proxmox tasks first and the VM last, so it finds the VM of an ended task",
)
def test_a_clone_that_ends_before_the_first_look_up_is_found(bench: Bench, play: Play) -> None:
    vm = bench.vm(full_clone=False)
    bench.pve.control("time_scale", scale=0)
    bench.pve.control("statistics", broadcast_interval_s=LAG_S)
    done = play("create", vm)
    assert (done.message, done.result["status"], len(done.result["upids"]) > 0) == ("", "stopped", True)


# ---------------------------------------------------------------------- a template with a marker


@pytest.mark.proxmox(
    behaviour="a clone gets the notes of its template, and a template made of a VM keeps the notes of the VM",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, clone_vm",
    reaction="refuses a template whose notes have a marker; doctor and `smith templates list` name it",
)
def test_a_template_with_a_marker_is_refused_before_the_clone(bench: Bench, play: Play) -> None:
    marker = "smith-uid=0d5d5bd1-2f7e-4b8a-9e0c-7f5a2c1b3d4e"
    if not bench.pve.guest(9201):
        bench.pve.control("add_template", vmid=9201, name="made-of-a-vm", node="pve1")
    bench.pve.control("configure", vmid=9201, values={"description": f"web\n{marker}"})
    outcome, requests = bench.changing_requests(lambda: play("create", bench.vm(template_vmid=9201)))
    assert (outcome.code, requests) == ("VM_IDENTITY_MISMATCH", [])
    assert marker in outcome.message
    assert "template 9201" in outcome.message


# ---------------------------------------------------------------------- HA resources


@pytest.mark.parametrize(("action", "status"), [("start", "stopped"), ("stop", "running"), ("restart", "running")])
def test_no_power_request_is_sent_for_a_vm_in_ha_error_state(
    bench: Bench, play: Play, action: str, status: str
) -> None:
    vm = bench.add_vm(status=status)
    bench.pve.control("behave", vmid=vm["vmid"], ha_state="error")
    outcome, requests = bench.changing_requests(lambda: play(action, vm))
    assert (outcome.code, requests) == ("VM_STATE", [])
    assert f"vm:{vm['vmid']}" in outcome.message


def test_a_start_of_an_ha_resource_waits_until_the_guest_runs(bench: Bench) -> None:
    vm = bench.add_vm()
    bench.pve.control("behave", vmid=vm["vmid"], ha_state="stopped")
    bench.pve.control("time_scale", scale=0.1)
    assert bench.play("start", vm).result["status"] == "running"


# ---------------------------------------------------------------------- tags that are not allowed


@pytest.mark.parametrize("options", [{"user_allow": "none"}, {"registered_tags": ["smith"]}])
def test_a_vm_is_created_without_tags_that_proxmox_refuses(bench: Bench, options: dict[str, Any]) -> None:
    bench.pve.control("options", **options)
    vm = bench.vm(tags=["web"])
    outcome = bench.play("create", vm)
    assert outcome.message == ""
    guest = bench.guest(vm)
    assert f"smith-uid={vm['service_id']}" in guest["config"]["description"]
    assert "smith" not in guest["config"]["tags"].split(";")
    assert "Proxmox does not allow them" in outcome.output
    again, requests = bench.changing_requests(lambda: bench.play("start", vm))
    assert (again.message, len(requests)) == ("", 1)


def test_a_vm_without_a_template_is_created_without_refused_tags(bench: Bench, play: Play) -> None:
    bench.pve.control("options", user_allow="none")
    vm = bench.vm(template_vmid=None, blank=True, node="pve1", storage="local-lvm")
    assert play("create", vm).message == ""
    assert "tags" not in bench.guest(vm)["config"]


def test_a_grace_deletion_without_tags_is_marked_in_the_notes(bench: Bench, play: Play) -> None:
    vm = bench.add_vm(config={"tags": ""})
    bench.pve.control("options", user_allow="none")
    marked = play("delete", {**vm, "grace_s": 3600})
    assert marked.message == ""
    assert f"smith-delete-at={marked.result['delete_at']}" in bench.guest(vm)["config"]["description"]
    answer_before_due = play("delete", {**vm, "only_when_due": True})
    assert (answer_before_due.message, answer_before_due.result["delete_at"]) == ("", marked.result["delete_at"])
    assert play("start", vm).code == "VM_STATE"
    assert play("update", {**vm, "cancel_deletion": True}).message == ""
    assert "smith-delete" not in bench.guest(vm)["config"]["description"]
    play("delete", {**vm, "grace_s": 1})
    bench.pve.control("configure", vmid=vm["vmid"], values={"description": notes_of_due_deletion(vm)})
    assert play("delete", {**vm, "only_when_due": True}).message == ""
    assert bench.pve.guest(vm["vmid"]) is None


@pytest.mark.parametrize("were_tags_allowed_at_the_creation", [True, False])
def test_the_protection_of_a_vm_is_removed_although_proxmox_refuses_its_tags(
    bench: Bench, play: Play, were_tags_allowed_at_the_creation: bool
) -> None:
    """The mark of a protection that the service has requested is a tag, or a line of the notes if tags are refused."""
    vm = bench.vm(protection=True)
    if not were_tags_allowed_at_the_creation:
        bench.pve.control("options", user_allow="none")
    assert play("create", vm).message == ""
    bench.pve.control("options", user_allow="none")
    assert ("smith-protected=1" in bench.guest(vm)["config"]["description"]) is not were_tags_allowed_at_the_creation
    assert play("start", vm).message == ""
    assert play("delete", vm).code == "VM_PROTECTED"
    identity = {name: vm[name] for name in ("service_id", "vmid", "name", "timeout_s", "shutdown_timeout_s")}
    assert play("update", {**identity, "cores": 4, "description": "a shop"}).message == ""
    assert play("update", {**identity, "protection": False}).message == ""
    assert "smith-protected=1" not in bench.guest(vm)["config"]["description"]
    assert play("delete", vm).message == ""


def notes_of_due_deletion(vm: dict[str, Any]) -> str:
    return f"smith-delete-at=1\nsmith-uid={vm['service_id']}"
