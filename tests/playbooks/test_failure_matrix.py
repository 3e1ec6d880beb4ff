"""Each action with each kind of failure: the error code is right, and a refused action changes nothing.

One test per failure runs all actions in parallel, each on its own VM, through warm runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from executor_bench import ExecutorBench
from play_bench import ACTIONS, Bench

from executor.model import JobResult

OS_TEMPLATE = "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"
STORAGE_FULL_ERROR = "unable to write to storage 'ceph': No space left on device"
MAX_PARALLEL = 6

#: The type of the Proxmox task of each action, and the request that starts it.
PROXMOX_TASK_TYPES = {
    "qemu": {
        **{"create": "qmclone", "start": "qmstart", "stop": "qmshutdown", "restart": "qmreboot"},
        **{"update": "qmconfig", "resize": "resize", "migrate": "qmigrate", "snapshot": "qmsnapshot"},
        **{"rollback": "qmrollback", "backup": "vzdump", "delete": "qmdestroy"},
    },
    "lxc": {
        **{"create": "vzcreate", "start": "vzstart", "stop": "vzshutdown", "restart": "vzstart"},
        **{"snapshot": "vzsnapshot", "rollback": "vzrollback", "backup": "vzdump", "delete": "vzdestroy"},
    },
}
CHANGING_REQUESTS = {
    "create": ("POST", "/nodes/*/qemu/9000/clone"),
    "start": ("POST", "/nodes/*/qemu/{vmid}/status/start"),
    "stop": ("POST", "/nodes/*/qemu/{vmid}/status/shutdown"),
    "restart": ("POST", "/nodes/*/qemu/{vmid}/status/reboot"),
    "update": ("PUT", "/nodes/*/qemu/{vmid}/config"),
    "resize": ("PUT", "/nodes/*/qemu/{vmid}/resize"),
    "migrate": ("POST", "/nodes/*/qemu/{vmid}/migrate"),
    "snapshot": ("POST", "/nodes/*/qemu/{vmid}/snapshot"),
    "rollback": ("POST", "/nodes/*/qemu/{vmid}/snapshot/*/rollback"),
    "backup": ("POST", "/nodes/*/vzdump"),
    "delete": ("DELETE", "/nodes/*/qemu/{vmid}"),
}
#: Privileges without which every action must fail.
PRIVILEGES = [
    *("VM.Clone", "VM.Allocate", "VM.PowerMgmt", "VM.Config.CPU", "VM.Config.Disk", "VM.Migrate", "VM.Snapshot"),
    *("VM.Snapshot.Rollback", "VM.Backup"),
]


def make_request_with_effect(bench: Bench, action: str, kind: str = "qemu") -> dict[str, Any]:
    """Return the variables of a guest on which the action would change something. Except for create, add this guest."""
    if action == "create" and kind == "qemu":
        return bench.vm()
    if action == "create":
        vm = bench.vm(kind="lxc", node="pve1", storage="ceph", disk_gib=4, os_template=OS_TEMPLATE, tags=[])
        return {key: value for key, value in vm.items() if key != "template_vmid"}
    status = "stopped" if action in ("start", "rollback") else "running"
    vm = (
        bench.add_container(status=status)
        if kind == "lxc"
        else bench.add_vm(status=status, config=DISK_ON_SHARED_STORAGE)
    )
    identity = {key: vm[key] for key in ("service_id", "vmid", "name", "kind", "timeout_s") if key in vm}
    return {**identity, "shutdown_timeout_s": 3, "address_timeout_s": 0, **REQUESTED.get(action, {})}


DISK_ON_SHARED_STORAGE = {"scsi0": "ceph:vm-1-disk-0,size=8G"}
REQUESTED: dict[str, dict[str, Any]] = {
    "update": {"cores": 8, "disks": [{"disk": "scsi1", "size_gib": 1, "storage": "ceph"}]},
    "resize": {"disk_gib": 9},
    "migrate": {"target_node": "pve2"},
    "backup": {"backup_storage": "backups"},
    "snapshot": {"snapshot": "new"},
}


@pytest.fixture
def play_in_parallel(
    bench: Bench, shared_executor: ExecutorBench
) -> Callable[[dict[str, dict[str, Any]]], dict[str, JobResult]]:
    """Return a function that runs each action on its VM, several in parallel."""

    def play(cases: dict[str, dict[str, Any]]) -> dict[str, JobResult]:
        with ThreadPoolExecutor(MAX_PARALLEL) as pool:
            results = pool.map(lambda case: shared_executor.play(*case), cases.items())
            return dict(zip(cases, results, strict=True))

    return play


Play = Callable[[dict[str, dict[str, Any]]], dict[str, JobResult]]


def make_requests_with_effect(
    bench: Bench, play_in_parallel: Play, actions: Iterator[str] | list[str], kind: str = "qemu"
) -> dict[str, Any]:
    """Return the variables of a guest for each action; that of a rollback has a snapshot."""
    cases = {action: make_request_with_effect(bench, action, kind) for action in actions}
    if "rollback" in cases:
        assert play_in_parallel({"snapshot": {**cases["rollback"], "snapshot": "before"}})["snapshot"].succeeded
    return cases


def codes_by_action(results: dict[str, JobResult]) -> dict[str, str]:
    return {action: str(result.code or "") for action, result in results.items()}


def state_of(bench: Bench, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {action: bench.pve.guest(vm["vmid"]) for action, vm in cases.items()}


@contextmanager
def without_privileges(bench: Bench, path: str, *privileges: str) -> Iterator[None]:
    for privilege in privileges:
        bench.pve.control("revoke", path=path, privilege=privilege)
    try:
        yield
    finally:
        for privilege in privileges:
            bench.pve.control("grant", path=path, privilege=privilege)


@pytest.mark.parametrize("kind", ["qemu", "lxc"])
def test_a_failed_proxmox_task_is_reported_with_the_message_of_proxmox(
    bench: Bench, play_in_parallel: Play, kind: str
) -> None:
    cases = make_requests_with_effect(bench, play_in_parallel, list(PROXMOX_TASK_TYPES[kind]), kind)
    for action, vm in cases.items():
        bench.pve.fail_task(PROXMOX_TASK_TYPES[kind][action], f"{action} broke at Proxmox", vmid=vm["vmid"])
    results = play_in_parallel(cases)
    assert codes_by_action(results) == dict.fromkeys(cases, "TASK_FAILED"), {a: r.message for a, r in results.items()}
    assert [a for a, result in results.items() if f"{a} broke at Proxmox" not in result.message] == []


def test_a_full_storage_ends_in_capacity(bench: Bench, play_in_parallel: Play) -> None:
    actions = ["create", "update", "resize", "snapshot", "rollback", "migrate", "backup"]
    cases = make_requests_with_effect(bench, play_in_parallel, actions)
    for action, vm in cases.items():
        bench.pve.fail_task(PROXMOX_TASK_TYPES["qemu"][action], STORAGE_FULL_ERROR, vmid=vm["vmid"])
    assert codes_by_action(play_in_parallel(cases)) == dict.fromkeys(cases, "CAPACITY")


def test_a_missing_vm_ends_every_action_but_delete_in_vm_not_found(bench: Bench, play_in_parallel: Play) -> None:
    cases = make_requests_with_effect(bench, play_in_parallel, [action for action in ACTIONS if action != "create"])
    for vm in cases.values():
        bench.pve.control("remove", vmid=vm["vmid"])
    expected = {action: "" if action == "delete" else "VM_NOT_FOUND" for action in cases}
    assert codes_by_action(play_in_parallel(cases)) == expected


@pytest.mark.parametrize("kind", ["qemu", "lxc"])
def test_a_locked_guest_ends_every_action_in_vm_locked(bench: Bench, play_in_parallel: Play, kind: str) -> None:
    cases = make_requests_with_effect(
        bench, play_in_parallel, [action for action in PROXMOX_TASK_TYPES[kind] if action != "create"], kind
    )
    for vm in cases.values():
        bench.pve.control("lock", vmid=vm["vmid"], lock="backup")
    before = state_of(bench, cases)
    assert codes_by_action(play_in_parallel(cases)) == dict.fromkeys(cases, "VM_LOCKED")
    assert state_of(bench, cases) == before


def test_a_vm_is_found_on_another_node_than_the_expected_one(bench: Bench, play_in_parallel: Play) -> None:
    cases = make_requests_with_effect(
        bench, play_in_parallel, [action for action in ACTIONS if action not in ("create", "migrate", "delete")]
    )
    results = play_in_parallel({action: {**vm, "node": "pve2"} for action, vm in cases.items()})
    assert codes_by_action(results) == dict.fromkeys(cases, "")
    assert {result.vm["node"] for result in results.values()} == {"pve1"}


def test_a_vm_on_an_offline_node_is_not_treated_as_deleted(bench: Bench, play_in_parallel: Play) -> None:
    cases = make_requests_with_effect(bench, play_in_parallel, [action for action in ACTIONS if action != "create"])
    for vm in cases.values():
        bench.pve.control("move", vmid=vm["vmid"], node="pve2")
    bench.pve.control("node", node="pve2", online=False)
    assert codes_by_action(play_in_parallel(cases)) == dict.fromkeys(cases, "NODE_DOWN")


@pytest.mark.parametrize("kind", ["qemu", "lxc"])
def test_a_missing_privilege_ends_every_action_in_pve_permission(
    bench: Bench, play_in_parallel: Play, kind: str
) -> None:
    cases = make_requests_with_effect(bench, play_in_parallel, list(PROXMOX_TASK_TYPES[kind]), kind)
    before = state_of(bench, cases)
    with without_privileges(bench, "/vms", *PRIVILEGES):
        results = play_in_parallel(cases)
    assert codes_by_action(results) == dict.fromkeys(cases, "PVE_PERMISSION"), {
        a: r.message for a, r in results.items()
    }
    assert state_of(bench, cases) == before


def test_a_connection_dropped_before_the_change_ends_in_pve_unreachable(bench: Bench, play_in_parallel: Play) -> None:
    cases = make_requests_with_effect(bench, play_in_parallel, list(ACTIONS))
    for action, vm in cases.items():
        method, path = CHANGING_REQUESTS[action]
        bench.pve.fail(method, path.format(vmid=vm["vmid"]), status=0)
    results = play_in_parallel(cases)
    assert codes_by_action(results) == dict.fromkeys(cases, "PVE_UNREACHABLE"), {
        a: r.message for a, r in results.items()
    }


def test_a_connection_dropped_after_the_change_fails_no_action(bench: Bench, play_in_parallel: Play) -> None:
    cases = make_requests_with_effect(bench, play_in_parallel, list(ACTIONS))
    for action, vm in cases.items():
        method, path = CHANGING_REQUESTS[action]
        bench.pve.fail(method, path.format(vmid=vm["vmid"]), status=0, after=True)
    results = play_in_parallel(cases)
    assert codes_by_action(results) == dict.fromkeys(cases, ""), {a: r.message for a, r in results.items()}
