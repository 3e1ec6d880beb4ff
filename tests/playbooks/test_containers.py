"""Containers: the same actions and the same result document as for VMs."""

from __future__ import annotations

import pytest
from play_bench import Bench, needs

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZv"


@pytest.mark.lab
def test_a_container_is_created_changed_and_deleted(bench: Bench) -> None:
    place = bench.place
    needs(place.os_template, "OS_TEMPLATE")
    node = place.node if place.is_real else place.second_node
    vm = bench.container(
        **{"node": node, "storage": place.other_storage, "os_template": place.os_template, "swap_mib": 0},
        network={
            "mode": "static",
            "bridge": place.other_bridge,
            "ipv4_cidr": "192.0.2.30/24",
            "dns_servers": ["192.0.2.53"],
        },
        cloud_init={"password": "swordfish", "ssh_public_keys": [f"{KEY} me@host\r\n"]},
    )
    done, changes = bench.changing_requests(lambda: bench.play("create", vm))
    assert (done.rc, changes) == (0, [f"POST /nodes/{node}/lxc"]), done.output
    assert (done.result["node"], done.result["disk_gib"], done.result["tags"]) == (node, 4, ["smith"])
    again, changes = bench.changing_requests(lambda: bench.play("create", vm))
    assert (again.rc, again.result["adopted"], changes) == (0, True, []), again.output
    assert bench.play("start", {**vm, "kind": "qemu"}).code == "VM_IDENTITY_MISMATCH"
    identity = {key: vm[key] for key in ("service_id", "vmid", "name", "kind", "timeout_s")}
    for action, more, status in (
        ("start", {}, "running"),
        ("restart", {}, "running"),
        ("update", {"cores": 1, "memory_mib": 1024, "description": "db"}, "running"),
        ("stop", {}, "stopped"),
        ("snapshot", {"snapshot": "before"}, "stopped"),
        ("rollback", {}, "stopped"),
        ("delete", {"final_backup": place.backup_storage}, "absent"),
    ):
        outcome = bench.play(action, {**identity, **more})
        assert (outcome.rc, outcome.result["status"], outcome.result["changed"]) == (0, status, True), (
            action,
            outcome.output,
        )
    assert bench.pve.guest(vm["vmid"]) is None


@pytest.mark.lab
def test_check_mode_creates_no_container(bench: Bench) -> None:
    place = bench.place
    needs(place.os_template, "OS_TEMPLATE")
    vm = bench.container(node=place.node, storage=place.other_storage, os_template=place.os_template)
    done, changes = bench.changing_requests(lambda: bench.play("create", vm, "--check"))
    assert (done.rc, changes) == (0, []), done.output
