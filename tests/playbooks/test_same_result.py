"""An action that is run by hand and by the executor has the same result document, or the same error (promise R16)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from executor_bench import ExecutorBench, playbook_settings
from play_bench import ACTIONS, Bench, Outcome

from executor.model import JobResult
from executor.runs.plan import plan
from executor.runs.request import RunRequest

pytestmark = pytest.mark.by_hand
PROPERTIES = {"cores": 2, "memoryMb": 2048, "diskGb": 9, "tags": ["web"]}
SOURCES = {
    "qemu": PROPERTIES | {"image": "debian-12", "hostname": "web"},
    "lxc": {"cores": 1, "memoryMb": 512, "diskGb": 4, "osTemplate": "debian-12"},
}


def add_copy(bench: Bench, action: str, kind: str) -> dict[str, Any]:
    """Add a VM with the same configuration as every other copy; for a create, only reserve its VMID."""
    status = "stopped" if action in ("start", "rollback", "update") else "running"
    if action == "create":
        return {**bench.vm(), "kind": kind}
    vm = (
        bench.add_container(status=status)
        if kind == "lxc"
        else bench.add_vm(status=status, config=DISK_ON_SHARED_STORAGE)
    )
    if action == "rollback":
        assert bench.play("snapshot", {**identity(vm), "snapshot": "before"}).rc == 0
    return {**vm, "kind": kind}


DISK_ON_SHARED_STORAGE = {"scsi0": "ceph:vm-1-disk-0,size=8G"}


def identity(vm: dict[str, Any]) -> dict[str, Any]:
    return {key: vm[key] for key in ("service_id", "vmid", "name", "kind") if key in vm} | {"timeout_s": 60}


def make_request(action: str, vm: dict[str, Any]) -> RunRequest:
    return RunRequest(
        action=action,
        service_id=vm["service_id"],
        service_name="a shop",
        properties=SOURCES[vm["kind"]],
        vmid=vm["vmid"],
        vm_name=vm["name"],
        kind=vm["kind"],
        node="pve1",
        target_node="pve2" if action == "migrate" else "",
        snapshot="smith-0a1b2c3d" if action == "snapshot" else "",
        time_left_s=60,
    )


def mask_varying_values(document: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return a result without the values that differ between two VMs or two moments."""
    compared = {**document, "upids": [upid.split(":")[5] for upid in document["upids"]]}
    compared["delete_at"] = bool(document["delete_at"])
    text = json.dumps(compared)
    for identifier in (vm["service_id"], vm["name"]):
        text = text.replace(identifier, "-")
    text = re.sub(rf"\b{vm['vmid']}\b", "0", text)
    text = re.sub(r"([0-9A-F]{2}:){5}[0-9A-F]{2}", "?", text)
    return dict(json.loads(re.sub(r"(vzdump-[a-z]+-0-|smith-delete-)\d+|10\.\d+\.\d+\.\d+", r"\1?", text)))


PlayBoth = Callable[..., tuple[Outcome, JobResult]]


@pytest.fixture
def play_both(bench: Bench, shared_executor: ExecutorBench) -> PlayBoth:
    """Return a function that runs an action by hand on one VM and through the executor on another VM, in parallel."""

    def play(
        action: str, manual_vm: dict[str, Any], executors_vm: dict[str, Any], **settings: Any
    ) -> tuple[Outcome, JobResult]:
        runs = [plan(make_request(action, vm), playbook_settings(**settings)) for vm in (manual_vm, executors_vm)]
        with ThreadPoolExecutor() as pool:
            by_hand = pool.submit(bench.play, action, runs[0].vm)
            by_executor = pool.submit(shared_executor.execute, runs[1])
            return by_hand.result(), by_executor.result()

    return play


CASES = [(action, "qemu") for action in ACTIONS]
CASES += [(action, "lxc") for action in ("create", "start", "update", "delete")]


@pytest.mark.parametrize(("action", "kind"), CASES)
def test_the_result_of_a_manual_run_equals_the_executors(
    bench: Bench, play_both: PlayBoth, action: str, kind: str
) -> None:
    manual_vm, executors_vm = add_copy(bench, action, kind), add_copy(bench, action, kind)
    by_hand, by_executor = play_both(action, manual_vm, executors_vm, makes_final_backup=True)
    assert by_hand.rc == 0, by_hand.output
    assert by_executor.succeeded, by_executor.message
    assert by_hand.result["changed"]
    assert mask_varying_values(by_hand.result, manual_vm) == mask_varying_values(by_executor.vm, executors_vm)


def test_a_deletion_with_a_grace_period_has_the_same_result_in_both_runs(bench: Bench, play_both: PlayBoth) -> None:
    manual_vm, executors_vm = add_copy(bench, "delete", "qemu"), add_copy(bench, "delete", "qemu")
    by_hand, by_executor = play_both("delete", manual_vm, executors_vm, delete_grace_s=3600)
    assert by_hand.result["delete_at"]
    assert mask_varying_values(by_hand.result, manual_vm) == mask_varying_values(by_executor.vm, executors_vm)


def message_without_run_ident(result: JobResult) -> str:
    return re.sub(r" \(run [a-z0-9-]+\)$", "", result.message)


@pytest.mark.parametrize("action", ["create", "update", "delete"])
def test_the_error_of_a_manual_run_equals_the_executors(bench: Bench, play_both: PlayBoth, action: str) -> None:
    vm = {**bench.add_vm(), "kind": "qemu"}
    bench.pve.control("recycle", vmid=vm["vmid"])
    by_hand, by_executor = play_both(action, vm, vm)
    assert by_hand.code in ("VM_IDENTITY_MISMATCH", "VM_ID_TAKEN")
    assert by_hand.message == message_without_run_ident(by_executor)
    assert by_hand.result == by_executor.vm == {}


def test_a_failed_start_leaves_the_same_early_result_in_both_runs(bench: Bench, play_both: PlayBoth) -> None:
    manual_vm, executors_vm = add_copy(bench, "start", "qemu"), add_copy(bench, "start", "qemu")
    for vm in (manual_vm, executors_vm):
        bench.pve.control("behave", vmid=vm["vmid"], start_error="start failed: QEMU exited with code 1")
    by_hand, by_executor = play_both("start", manual_vm, executors_vm)
    assert (
        by_hand.message
        == message_without_run_ident(by_executor)
        == "TASK_FAILED: start failed: QEMU exited with code 1"
    )
    assert mask_varying_values(by_hand.result, manual_vm) == mask_varying_values(by_executor.vm, executors_vm)
