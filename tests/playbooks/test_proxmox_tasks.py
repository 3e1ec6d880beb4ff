"""Which Proxmox tasks belong to a change: those of the same guest and user whose type the change creates."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import cluster, look_up, proxmox_tasks
from play_bench import Bench

#: The type of the Proxmox tasks of another client in these tests. No action here starts one.
OTHER_CLIENTS_TYPE = "qmdelsnapshot"


@pytest.mark.parametrize(
    ("change", "kind", "types"),
    [
        ("cloned", "qemu", {"qmclone"}),
        ("created", "lxc", {"vzcreate"}),
        ("stopped", "qemu", {"qmshutdown", "hastop"}),
        ("restarted", "lxc", {"vzshutdown", "hastop", "vzstart", "hastart"}),
        ("configured", "qemu", {"qmconfig", "qmmove", "resize"}),
        ("configured", "lxc", set()),  # Proxmox configures a container without a Proxmox task
        ("backed_up", "lxc", {"vzdump"}),
    ],
)
def test_a_change_creates_proxmox_tasks_of_its_types(change: str, kind: str, types: set[str]) -> None:
    assert set(proxmox_tasks.task_types(change, kind)) == types


def test_no_change_of_a_guest_creates_the_proxmox_task_of_another_kind_of_guest() -> None:
    for (change, kind), types in proxmox_tasks.TASK_TYPES.items():
        prefix = {"qemu": "vz", "lxc": "qm"}[kind]
        assert not [name for name in types if name.startswith(prefix) and name != "vzdump"], (change, kind)


def facts_after_failed_task_of_another_client(
    bench: Bench, vm: dict[str, Any], types: tuple[str, ...] | None
) -> dict[str, Any]:
    """Return the facts of a look-up that waits for a running VM after another client's Proxmox task has failed."""
    login = bench.pve.env()
    connection = {
        "api_host": login["PROXMOX_HOST"],
        "api_port": login["PROXMOX_PORT"],
        "api_user": login["PROXMOX_USER"],
        "api_token_id": login["PROXMOX_TOKEN_ID"],
        "api_token_secret": login["PROXMOX_TOKEN_SECRET"],
    }
    opened, _login = cluster.open_cluster(connection, login["PROXMOX_CA_BUNDLE"], "qemu")
    bench.pve.control("add_task", vmid=vm["vmid"], type=OTHER_CLIENTS_TYPE, exitstatus="snapshot 'x' does not exist")
    query = look_up.Query(
        vmid=vm["vmid"],
        node="pve1",
        deadline_monotonic_s=time.monotonic(),
        wait_for="running",
        known_tasks=[],
        task_types=types,
    )
    return look_up.LookUp(opened, query, lambda _facts, _running: None).run()


def test_a_failed_task_of_another_type_is_not_the_error_of_a_start(bench: Bench) -> None:
    vm = bench.add_vm()
    facts = facts_after_failed_task_of_another_client(bench, vm, proxmox_tasks.task_types("running", "qemu"))
    assert (facts["reached"], facts["task_error"], facts["upids"]) == (False, "", [])


def test_a_look_up_without_types_finds_the_proxmox_tasks_of_every_type(bench: Bench) -> None:
    """A provider's playbook may make any change, so its look-up cannot know the types."""
    vm = bench.add_vm()
    facts = facts_after_failed_task_of_another_client(bench, vm, None)
    assert facts["task_error"] == "snapshot 'x' does not exist"
    assert [upid.split(":")[5] for upid in facts["upids"]] == [OTHER_CLIENTS_TYPE]


def test_the_proxmox_task_of_another_client_is_known_after_the_look_up(bench: Bench) -> None:
    """Otherwise a later change of this action that starts Proxmox tasks of that type would count it as its own."""
    vm = bench.add_vm()
    facts = facts_after_failed_task_of_another_client(bench, vm, proxmox_tasks.task_types("running", "qemu"))
    assert [upid.split(":")[5] for upid in facts["known_tasks"]] == [OTHER_CLIENTS_TYPE]


def test_a_start_returns_no_proxmox_task_of_another_client(bench: Bench) -> None:
    vm = bench.add_vm()
    bench.pve.control("hold_change", number=1)
    with ThreadPoolExecutor() as pool:
        started = pool.submit(bench.play, "start", vm)
        while not bench.pve.is_holding():
            time.sleep(0.02)
        bench.pve.control(
            "add_task", vmid=vm["vmid"], type=OTHER_CLIENTS_TYPE, exitstatus="snapshot 'x' does not exist"
        )
        bench.pve.control("clear_faults")
        done = started.result()
    assert (done.rc, [upid.split(":")[5] for upid in done.result["upids"]]) == (0, ["qmstart"]), done.output
