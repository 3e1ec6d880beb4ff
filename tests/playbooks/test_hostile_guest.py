"""A guest agent that returns arbitrary data as its addresses: every action works, and reports only valid addresses.

Every answer in `GUEST_ANSWERS` is returned during one or two actions, and then during a deletion of the running VM.
"""

from __future__ import annotations

import base64
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from executor_bench import ExecutorBench
from play_bench import ACTIONS, Bench
from support.guest_answers import ADDRESSES, FORGED, GUEST_ANSWERS, GuestAnswer

from executor.model import JobResult

MAX_PARALLEL = 4
#: The actions before the deletion. A VM can be started only after a stop, and rolled back only after a snapshot.
SEQUENCES = (
    *(("create",), ("stop", "start"), ("restart",), ("update",), ("resize",), ("migrate",), ("snapshot", "rollback")),
    ("backup",),
)
REQUESTS: dict[str, dict[str, Any]] = {
    "update": {"cores": 4},
    "resize": {"disk_gib": 9},
    "migrate": {"target_node": "pve2"},
    "backup": {"backup_storage": "backups"},
    "snapshot": {"snapshot": "first"},
    "rollback": {"snapshot": "first"},
}
CASES = [(name, sequence) for name, sequence in zip(GUEST_ANSWERS, itertools.cycle(SEQUENCES), strict=False)]


def override_answer(bench: Bench, path: str, answer: GuestAnswer) -> None:
    """Make the stand-in answer every GET request for this path with this answer, as if the guest had caused it."""
    body = base64.b64encode(answer.body).decode()
    options = {"body": body, "is_cut": answer.is_cut, "delay_s": answer.delay_s}
    bench.pve.fail("GET", path, status=answer.status, text=answer.reason, times=-1, **options)


def describe_problem(action: str, result: JobResult) -> str:
    """Return what is wrong with the result of an action; '' if nothing is."""
    if result.message:
        return f"{action}: {result.message}"
    if FORGED in repr(result) or not set(result.vm["ip_addresses"]) <= set(ADDRESSES):
        return f"{action} reports {result.vm}"
    return ""


def play_until_first_problem(bench: Bench, executor: ExecutorBench, name: str, actions: tuple[str, ...]) -> str:
    """Play the actions and a deletion on a new VM whose guest gives this answer; return the first problem."""
    config = {"scsi0": "ceph:vm-1-disk-0,size=8G"}
    vm = {**bench.add_vm(status="running", config=config), "address_timeout_s": 1}
    override_answer(bench, f"/nodes/*/qemu/{vm['vmid']}/agent/network-get-interfaces", GUEST_ANSWERS[name])
    for action in (*actions, "delete"):
        if text := describe_problem(action, executor.play(action, {**vm, **REQUESTS.get(action, {})})):
            return text
    return "" if bench.pve.guest(vm["vmid"]) is None else "the VM exists after its deletion"


def test_every_action_works_and_reports_only_valid_addresses_whatever_the_guest_answers(
    bench: Bench, shared_executor: ExecutorBench
) -> None:
    with ThreadPoolExecutor(MAX_PARALLEL) as pool:
        problems = list(pool.map(lambda case: play_until_first_problem(bench, shared_executor, *case), CASES))
    assert {name: problem for (name, _actions), problem in zip(CASES, problems, strict=True) if problem} == {}


def test_every_action_and_more_than_thirty_answers_are_tried() -> None:
    assert {action for sequence in SEQUENCES for action in sequence} | {"delete"} == set(ACTIONS)
    assert len(GUEST_ANSWERS) > 30


CONTAINER_ANSWERS = {
    "texts": [FORGED],
    "an object": {"inet": FORGED},
    "no addresses": [
        {"name": "eth0", "hwaddr": "bc:24:11:00:11:33", "inet": f"{FORGED}/24", "inet6": f"2001:db8::5%{FORGED}/64"},
        {"name": "eth0", "hwaddr": "bc:24:11:00:11:33", "inet": [FORGED], "inet6": {"a": FORGED}},
    ],
    "an address": [{"name": "eth0", "hwaddr": "bc:24:11:00:11:33", "inet": f"{ADDRESSES[0]}/24"}],
}


@pytest.mark.parametrize("name", CONTAINER_ANSWERS)
def test_a_container_is_deleted_whatever_addresses_it_returns(
    bench: Bench, shared_executor: ExecutorBench, name: str
) -> None:
    container = bench.add_container(status="running")
    path = f"/nodes/*/lxc/{container['vmid']}/interfaces"
    override_answer(bench, path, GuestAnswer(body=json.dumps({"data": CONTAINER_ANSWERS[name]}).encode()))
    for action in ("snapshot", "delete"):
        assert describe_problem(action, shared_executor.play(action, {**container, "snapshot": "first"})) == ""
    assert bench.pve.guest(container["vmid"]) is None
