"""Snapshots whose Proxmox task was interrupted: Proxmox lists them, but they cannot be used."""

from __future__ import annotations

from typing import Any

import pytest
from both_ways import Play
from play_bench import Bench

STATES = ["prepare", "delete"]


def add_vm_with_snapshots(bench: Bench, **snapstates: str) -> dict[str, Any]:
    """Add a VM with snapshots of these names; the value is the member `snapstate` of the snapshot, or ''."""
    vm = {**bench.add_vm(), "timeout_s": 8}
    config = dict(bench.guest(vm)["config"])
    snapshots = {
        name: {**config, "snaptime": number, **({"snapstate": state} if state else {})}
        for number, (name, state) in enumerate(snapstates.items(), start=1)
    }
    bench.pve.control("behave", vmid=vm["vmid"], snapshots=snapshots)
    return vm


@pytest.mark.proxmox(
    behaviour="a snapshot whose making or deletion was interrupted stays in the list, with `snapstate`",
    versions="8, 9",
    source="pve-guest-common: PVE/AbstractConfig.pm, __snapshot_prepare and snapshot_delete",
    reaction="does not take it for a snapshot (`VM_LOCKED`, retried later), and never rolls back to it",
)
@pytest.mark.parametrize("state", STATES)
def test_an_unfinished_snapshot_is_not_the_requested_one(bench: Bench, play: Play, state: str) -> None:
    """Otherwise the job would complete, and a tenant would rely on a snapshot that does not exist."""
    vm = add_vm_with_snapshots(bench, mine=state)
    refused, changes = bench.changing_requests(lambda: play("snapshot", {**vm, "snapshot": "mine"}))
    assert (refused.code, changes) == ("VM_LOCKED", [])
    assert f"qm delsnapshot {vm['vmid']} mine --force" in refused.message


@pytest.mark.parametrize("state", STATES)
def test_a_rollback_uses_the_newest_complete_snapshot(bench: Bench, play: Play, state: str) -> None:
    vm = add_vm_with_snapshots(bench, older="", newer=state)
    assert play("rollback", vm).result["snapshot"] == "older"


def test_a_rollback_to_an_unfinished_snapshot_is_refused_before_any_change(bench: Bench, play: Play) -> None:
    vm = add_vm_with_snapshots(bench, mine="prepare")
    refused, changes = bench.changing_requests(lambda: play("rollback", {**vm, "snapshot": "mine"}))
    assert (refused.code, changes) == ("VM_LOCKED", [])


def test_a_new_snapshot_does_not_get_the_name_of_an_unfinished_one(bench: Bench) -> None:
    vm = add_vm_with_snapshots(bench, **{"smith-1": "prepare"})
    assert bench.play("snapshot", vm).result["snapshot"] == "smith-2"


def test_a_snapshot_that_an_earlier_attempt_is_still_creating_is_vm_locked_until_it_is_complete(bench: Bench) -> None:
    vm = add_vm_with_snapshots(bench, mine="prepare")
    bench.pve.control("lock", vmid=vm["vmid"], lock="snapshot")
    assert bench.play("snapshot", {**vm, "snapshot": "mine"}).message == "VM_LOCKED: VM is locked (snapshot)"
    bench.pve.control("lock", vmid=vm["vmid"], lock=None)
    bench.pve.control("behave", vmid=vm["vmid"], snapshots={"mine": dict(bench.guest(vm)["config"])})
    done = bench.play("snapshot", {**vm, "snapshot": "mine"})
    assert (done.message, done.result["snapshot"], done.result["changed"]) == ("", "mine", False)
