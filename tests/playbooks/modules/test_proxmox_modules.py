"""The modules of community.proxmox that our action plugins call: operations succeed, fail, and run in check mode.

tests/playbooks/test_modules.py shows in which cases the answer of such a module is wrong.
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import pytest
from module_runner import ModuleRunner
from operations import OPERATIONS, Operation, as_parameters
from play_bench import Bench
from plugin_sources import modules_that_actions_call

REFUSAL = "no such device"


def run(bench: Bench, operation: Operation, runner: Any, vm: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Run an operation with a method of ModuleRunner; return its answer and its changing requests."""
    bench.pve.reset_request_log()
    answer = runner(operation.module, **operation.parameters(bench, vm))
    return answer, [f"{entry['method']} {entry['path']}" for entry in bench.pve.changing_requests()]


@pytest.mark.parametrize("operation", as_parameters())
def test_a_module_makes_the_change_and_reports_it(bench: Bench, modules: ModuleRunner, operation: Operation) -> None:
    vm = operation.prepare(bench, modules)
    answer, requests = run(bench, operation, modules.run, vm)
    assert (answer.get("failed", False), answer["changed"]) == (False, True), answer
    assert operation.is_done(bench, vm, bench.pve.guest(vm["vmid"])), (answer, bench.pve.guest(vm["vmid"]))
    assert any(fnmatch(request, pattern) for request in requests for pattern in operation.requests), requests


@pytest.mark.parametrize("operation", as_parameters(is_for_lab=False))
def test_a_module_fails_with_the_text_of_proxmox_and_changes_nothing(
    bench: Bench, modules: ModuleRunner, operation: Operation
) -> None:
    vm = operation.prepare(bench, modules)
    before = bench.pve.guest(vm["vmid"])
    for request in operation.requests:
        bench.pve.fail(*request.split(" "), text=REFUSAL, times=-1)
    answer, _requests = run(bench, operation, modules.run, vm)
    assert (answer.get("failed"), REFUSAL in answer["msg"]) == (True, True), answer
    assert bench.pve.guest(vm["vmid"]) == before


@pytest.mark.parametrize("operation", as_parameters())
def test_a_module_changes_nothing_in_check_mode(bench: Bench, modules: ModuleRunner, operation: Operation) -> None:
    """Ansible skips a module that does not support check mode. So our action plugins plan their changes themselves."""
    vm = operation.prepare(bench, modules)
    before = bench.pve.guest(vm["vmid"])
    answer, requests = run(bench, operation, modules.run_in_check_mode, vm)
    assert (answer.get("failed", False), requests) == (False, []), answer
    assert bench.pve.guest(vm["vmid"]) == before


def test_every_module_that_an_action_calls_is_tested() -> None:
    assert {operation.module for operation in OPERATIONS} == modules_that_actions_call()
