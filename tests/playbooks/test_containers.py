"""Containers through real plays: the same actions, the same result document."""

from __future__ import annotations

from play_bench import Bench

OS_TEMPLATE = "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"


def test_a_container_lives_from_create_to_delete(bench: Bench) -> None:
    vm = bench.vm(
        **{"kind": "lxc", "node": "pve2", "storage": "ceph", "disk_gib": 4, "os_template": OS_TEMPLATE, "swap_mib": 0},
        tags=[],
        network={"mode": "static", "bridge": "vmbr0", "ipv4_cidr": "192.0.2.30/24", "dns_servers": ["192.0.2.53"]},
        cloud_init={"password": "swordfish", "ssh_public_keys": ["ssh-ed25519 AAAA me@host\r\n"]},
    )
    del vm["template_vmid"]
    done, changes = bench.changing_requests(lambda: bench.play("create", vm))
    assert (done.rc, changes) == (0, ["POST /nodes/pve2/lxc"]), done.output
    assert (done.result["node"], done.result["disk_gib"], done.result["tags"]) == ("pve2", 4, ["smith"])
    again, changes = bench.changing_requests(lambda: bench.play("create", vm))
    assert (again.rc, again.result["adopted"], changes) == (0, True, []), again.output
    assert bench.play("start", {**vm, "kind": "qemu"}).code == "VM_IDENTITY_MISMATCH"
    wish = {key: vm[key] for key in ("service_id", "vmid", "name", "kind", "timeout_s")}
    for action, more, status in (
        ("start", {}, "running"),
        ("restart", {}, "running"),
        ("update", {"cores": 1, "memory_mib": 1024, "description": "db"}, "running"),
        ("stop", {}, "stopped"),
        ("snapshot", {"snapshot": "before"}, "stopped"),
        ("rollback", {}, "stopped"),
        ("delete", {"final_backup": "backups"}, "absent"),
    ):
        ran = bench.play(action, {**wish, **more})
        assert (ran.rc, ran.result["status"], ran.result["changed"]) == (0, status, True), (action, ran.output)
    assert bench.pve.guest(vm["vmid"]) is None


def test_check_mode_makes_no_container(bench: Bench) -> None:
    wish = {"kind": "lxc", "node": "pve1", "storage": "ceph", "os_template": OS_TEMPLATE, "tags": []}
    vm = {key: value for key, value in bench.vm(**wish).items() if key != "template_vmid"}
    done, changes = bench.changing_requests(lambda: bench.play("create", vm, "--check"))
    assert (done.rc, changes) == (0, []), done.output
