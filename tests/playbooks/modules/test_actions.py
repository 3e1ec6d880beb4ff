"""Each action plugin of agent_smith.proxmox, executed alone: its success, its refusals, and its check mode."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import guests
import pytest
from guests import Guest, Vm
from module_runner import ModuleRunner
from play_bench import Bench
from plugin_sources import actions as existing_actions

KVM, CONTAINER = "community.proxmox.proxmox_kvm", "community.proxmox.proxmox"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One use of an action plugin that changes a guest."""

    action: str
    name: str
    prepare: Callable[[Bench, ModuleRunner], Vm]
    modules: list[str]  #: the modules that it executes
    requests: list[str] = field(default_factory=list)  #: the changing requests that it sends without a module
    is_done: Callable[[Bench, Vm, Guest], bool]
    requested: Mapping[str, Any] = field(default_factory=dict)  #: members of `vm` in addition to those of `prepare`
    arguments: Mapping[str, Any] = field(default_factory=dict)  #: arguments in addition to `vm`
    refusal: str = "VM_IDENTITY_MISMATCH"  #: the error code if the VMID belongs to another service


CASES = (
    Case(
        action="vm_present",
        name="VM",
        prepare=guests.new_vm,
        modules=[KVM, KVM],
        is_done=guests.is_marked,
        refusal="VM_ID_TAKEN",
    ),
    Case(
        action="vm_present",
        name="container",
        prepare=guests.new_container,
        modules=[CONTAINER],
        is_done=guests.is_marked,
        refusal="VM_ID_TAKEN",
    ),
    Case(
        action="vm_configured",
        name="cores",
        prepare=guests.stopped_vm,
        requested={"cores": 4},
        modules=[KVM],
        is_done=lambda bench, vm, guest: guests.cores(guest) == 4,
    ),
    Case(
        action="vm_power",
        name="running",
        prepare=guests.stopped_vm,
        arguments={"state": "running"},
        modules=[KVM],
        is_done=guests.is_running,
    ),
    Case(
        action="vm_power",
        name="stopped",
        prepare=guests.running_vm,
        arguments={"state": "stopped"},
        modules=[KVM],
        is_done=guests.is_stopped,
    ),
    Case(
        action="vm_power",
        name="restarted",
        prepare=guests.running_container,
        arguments={"state": "restarted"},
        modules=[CONTAINER, CONTAINER],
        is_done=guests.is_running,
    ),
    Case(
        action="vm_placed",
        name="second node",
        prepare=guests.vm_on_shared_storage,
        modules=[KVM],
        is_done=lambda bench, vm, guest: guest is not None and guest["node"] == vm["target_node"],
    ),
    Case(
        action="vm_snapshot",
        name="present",
        prepare=guests.stopped_vm,
        requested={"snapshot": guests.SNAPSHOT},
        modules=["community.proxmox.proxmox_snap"],
        is_done=guests.has_snapshot,
    ),
    Case(
        action="vm_snapshot",
        name="rolled back",
        prepare=guests.vm_changed_after_its_snapshot,
        arguments={"state": "rolled_back"},
        modules=["community.proxmox.proxmox_snap"],
        is_done=lambda bench, vm, guest: guests.cores(guest) == 2,
    ),
    Case(
        action="vm_backed_up",
        name="storage",
        prepare=guests.vm_to_back_up,
        modules=[],
        requests=["POST nodes/{node}/vzdump"],
        is_done=guests.has_archive,
    ),
    Case(
        action="vm_absent",
        name="VM",
        prepare=guests.running_vm,
        modules=[KVM, KVM],
        is_done=guests.is_absent,
    ),
)
#: The action plugins that only read.
READ_ONLY_ACTIONS = ("vm_identity", "vm_info")
for_each_case = pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.action}-{case.name}") for case in CASES])


def run(bench: Bench, runner: Any, case: Case, vm: Vm) -> tuple[dict[str, Any], list[str]]:
    """Execute an action plugin with a method of ModuleRunner; return its answer and its changing requests."""
    bench.pve.reset_request_log()
    answer = runner(case.action, vm={**vm, **case.requested}, **case.arguments)
    return answer, [f"{entry['method']} {entry['path']}" for entry in bench.pve.changing_requests()]


@pytest.mark.lab
@for_each_case
def test_an_action_makes_its_change_and_returns_the_result_document(
    bench: Bench, modules: ModuleRunner, actions: ModuleRunner, case: Case
) -> None:
    vm = case.prepare(bench, modules)
    answer, _requests = run(bench, actions.run, case, vm)
    assert (answer.get("failed", False), answer["changed"]) == (False, True), answer
    assert answer["modules"] == case.modules
    assert answer["requests"] == [text.format(**answer["vm_result"]) for text in case.requests]
    assert (answer["vm_result"]["vmid"], answer["vm_result"]["name"]) == (vm["vmid"], vm["name"])
    assert answer["ansible_stats"]["data"] == {"vm_result": answer["vm_result"]}
    assert case.is_done(bench, vm, bench.pve.guest(vm["vmid"])), bench.pve.guest(vm["vmid"])


@pytest.mark.lab
@for_each_case
def test_an_action_refuses_the_guest_of_another_service(
    bench: Bench, modules: ModuleRunner, actions: ModuleRunner, case: Case
) -> None:
    vm = case.prepare(bench, modules)
    if bench.pve.guest(vm["vmid"]) is None:
        existing = bench.add_container() if vm.get("kind") == "lxc" else bench.add_vm()
        vm |= {"vmid": existing["vmid"]}
    before = bench.pve.guest(vm["vmid"])
    answer, requests = run(bench, actions.run, case, {**vm, "service_id": str(uuid.uuid4())})
    assert (answer.get("failed"), answer["msg"].partition(":")[0]) == (True, case.refusal), answer
    assert (answer["changed"], answer["modules"], answer["requests"], requests) == (False, [], [], [])
    assert bench.pve.guest(vm["vmid"]) == before


@pytest.mark.lab
@for_each_case
def test_an_action_plans_in_check_mode_and_changes_nothing(
    bench: Bench, modules: ModuleRunner, actions: ModuleRunner, case: Case
) -> None:
    vm = case.prepare(bench, modules)
    before = bench.pve.guest(vm["vmid"])
    answer, requests = run(bench, actions.run_in_check_mode, case, vm)
    assert (answer.get("failed", False), answer["changed"]) == (False, True), answer
    assert answer["vm_result"]["planned"]
    assert answer["diff"]["after"] != answer["diff"]["before"]
    assert (answer["modules"], answer["requests"], requests) == ([], [], [])
    assert bench.pve.guest(vm["vmid"]) == before


# ---------------------------------------------------------------------- action plugins that only read


@pytest.mark.lab
@pytest.mark.parametrize("is_check_mode", [False, True])
def test_vm_identity_returns_the_facts_of_the_services_guest(
    bench: Bench, actions: ModuleRunner, is_check_mode: bool
) -> None:
    vm = bench.add_vm()
    bench.pve.reset_request_log()
    answer = (actions.run_in_check_mode if is_check_mode else actions.run)("vm_identity", vm=vm)
    assert (answer.get("failed", False), answer["changed"], answer["modules"]) == (False, False, []), answer
    assert (answer["facts"]["exists"], answer["facts"]["markers"]) == (True, [vm["service_id"]])
    assert answer["vm_result"]["status"] == "stopped"
    assert bench.pve.changing_requests() == []


@pytest.mark.lab
def test_vm_identity_refuses_the_guest_of_another_service(bench: Bench, actions: ModuleRunner) -> None:
    answer = actions.run("vm_identity", vm={**bench.add_vm(), "service_id": str(uuid.uuid4())})
    assert (answer.get("failed"), answer["msg"].partition(":")[0]) == (True, "VM_IDENTITY_MISMATCH")


@pytest.mark.lab
@pytest.mark.parametrize("is_check_mode", [False, True])
def test_vm_info_returns_the_facts_of_a_guest(bench: Bench, actions: ModuleRunner, is_check_mode: bool) -> None:
    vm = bench.add_vm()
    bench.pve.reset_request_log()
    answer = (actions.run_in_check_mode if is_check_mode else actions.run)("vm_info", vmid=vm["vmid"])
    assert (answer.get("failed", False), answer["changed"]) == (False, False), answer
    assert (answer["vm"]["exists"], answer["vm"]["node"], answer["vm"]["name"]) == (True, bench.place.node, vm["name"])
    assert bench.pve.changing_requests() == []


@pytest.mark.lab
def test_vm_info_fails_with_a_code_if_proxmox_refuses_the_login(
    bench: Bench, actions: ModuleRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROXMOX_TOKEN_SECRET", "wrong")
    answer = actions.run("vm_info", vmid=bench.place.template)
    assert (answer.get("failed"), answer["msg"].partition(":")[0]) == (True, "PVE_AUTH"), answer


def test_every_action_plugin_is_tested() -> None:
    assert {case.action for case in CASES} | set(READ_ONLY_ACTIONS) == existing_actions()
