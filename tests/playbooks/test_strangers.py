"""The real playbooks run on many guests of other owners: no guest is changed.

`test_decisions.py` tests the function that decides with ten thousand cases. Here each case is a real run of a playbook
on a guest of the stand-in. The stand-in's request log shows that no run requested a change.
"""

from __future__ import annotations

import os
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from executor_bench import ExecutorBench
from play_bench import ACTIONS, Bench

from executor.model import JobResult

#: How many of the 200 plays (CONTRIBUTING.md) run: each costs a third of a CPU second.
PLAYS = int(os.environ.get("STRANGER_PLAYS", "40"))
MAX_PARALLEL = 4
REFUSALS = {"VM_IDENTITY_MISMATCH", "VM_PROTECTED", "VM_ID_TAKEN"}
REQUESTED: dict[str, dict[str, Any]] = {
    "create": {"template_vmid": 9000, "cores": 2, "memory_mib": 2048, "disk_gib": 8},
    "update": {"cores": 8, "tags": ["taken"], "allow_reboot": True},
    "resize": {"disk_gib": 9},
    "migrate": {"target_node": "pve2"},
    "backup": {"backup_storage": "backups"},
    "snapshot": {"snapshot": "mine"},
    "delete": {"purge": True, "final_backup": "backups"},
}


def add_guest_of_another_owner(rng: random.Random, bench: Bench) -> tuple[str, dict[str, Any]]:
    """Add a guest that is not the VM which a job expects; return the job's action and the variables of that VM."""
    expected_vm = bench.vm()
    action = rng.choice(ACTIONS)
    others_service_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    while True:
        marker = rng.choice(
            [
                expected_vm["service_id"],
                expected_vm["service_id"].upper(),
                others_service_id,
                expected_vm["service_id"][:-1],
                "",
            ]
        )
        second = rng.choice(["", "", f"\nsmith-uid={others_service_id}"])
        name = rng.choice([expected_vm["name"], expected_vm["name"], expected_vm["name"][:-1] + "x", "foreign"])
        is_template, is_protected = rng.random() < 0.2, rng.random() < 0.2
        kind = rng.choice(["qemu", "qemu", "qemu", "lxc"])
        is_marked = marker.lower() == expected_vm["service_id"] and not second
        is_ours = is_marked and name == expected_vm["name"] and kind == "qemu" and not is_template and not is_protected
        # A create also adopts the service's clone: only the marker is right, or only the name without a marker.
        is_clone_of_service = (
            kind == "qemu"
            and not is_template
            and ((is_marked and not is_protected) or (not marker and not second and name == expected_vm["name"]))
        )
        if not (is_clone_of_service if action == "create" else is_ours):
            break
    description = f"foreign\nsmith-uid={marker}{second}" if marker else f"foreign{second}"
    config = {"description": description, "tags": "smith;web", "memory": "2048", "protection": int(is_protected)}
    drive = {"rootfs": "ceph:vm-1-disk-0,size=4G"} if kind == "lxc" else {"scsi0": "ceph:vm-1-disk-0,size=8G"}
    template = {"template": 1} if is_template else {}
    bench.pve.control(
        "add_container" if kind == "lxc" else "add",
        vmid=expected_vm["vmid"],
        name=name,
        status="stopped" if is_template or action in ("start", "rollback") else rng.choice(["running", "stopped"]),
        node=rng.choice(["pve1", "pve2"]),
        config=config | drive | template,
    )
    identity = {key: expected_vm[key] for key in ("service_id", "vmid", "name", "timeout_s")}
    return action, {**identity, "node": rng.choice(["", "pve1", "pve2"]), **REQUESTED.get(action, {})}


@pytest.mark.timeout(900)
def test_no_playbook_changes_a_guest_of_another_owner(bench: Bench, shared_executor: ExecutorBench) -> None:
    rng = random.Random(4711)  # noqa: S311 - the same cases in every run
    cases = [add_guest_of_another_owner(rng, bench) for _ in range(PLAYS)]
    before = {guest["vmid"]: guest for guest in bench.pve.guests()}
    bench.pve.reset_request_log()

    with ThreadPoolExecutor(MAX_PARALLEL) as pool:
        played = list(pool.map(lambda case: shared_executor.play(*case), cases))

    assert bench.pve.changing_requests() == []
    assert {guest["vmid"]: guest for guest in bench.pve.guests()} == before
    cases_with_results = list(zip(cases, played, strict=True))
    assert [
        describe_run(case, result) for case, result in cases_with_results if not is_refused_with_its_vmid(case, result)
    ] == []
    assert {action for action, _vm in cases} == set(ACTIONS)


def is_refused_with_its_vmid(case: tuple[str, dict[str, Any]], result: JobResult) -> bool:
    """Whether the action was refused with a message that names the VMID."""
    return not result.succeeded and result.code in REFUSALS and str(case[1]["vmid"]) in result.message


def describe_run(case: tuple[str, dict[str, Any]], result: JobResult) -> str:
    return f"{case[0]} of {case[1]['vmid']}: {result.message or 'succeeded'}"
