"""Each playbook: converge, run again without a change, verify in Proxmox, clean up."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Any

import pytest
import yaml
from play_bench import ACTIONS, ROOT, Bench, needs

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZv"


def first_disk(config: dict[str, Any]) -> str:
    """Return the drive that the VM boots from."""
    boot_order = str(config.get("boot", "")).removeprefix("order=").split(";")
    return next((name for name in boot_order if name in config), "scsi0")


@pytest.mark.lab
@pytest.mark.by_hand
def test_create_makes_the_requested_vm(bench: Bench) -> None:
    place, larger_gib = bench.place, bench.place.disk_gib + 4
    vm = bench.vm(
        disk_gib=larger_gib,
        description="A shop\nsmith-uid=00000000-0000-0000-0000-000000000000",
        tags=["Web", "prod"],
        network={
            **{"mode": "static", "bridge": place.other_bridge, "vlan": 12, "ipv4_cidr": "192.0.2.10/24"},
            **{"ipv4_gateway": "192.0.2.1", "dns_servers": ["192.0.2.53"]},
        },
        cloud_init={"user": "admin", "ssh_public_keys": [f"{KEY} a+b/c@host\r\n", f"{KEY} %20\n"]},
    )
    done = bench.play("create", vm)
    assert done.rc == 0, done.output
    config = bench.guest(vm)["config"]
    assert (str(config["cores"]), config["memory"], config["name"]) == ("2", "2048", vm["name"])
    assert f"size={larger_gib}G" in config[first_disk(config)]
    assert config["tags"] == "prod;smith;web"
    assert [line for line in config["description"].splitlines() if line.startswith("smith-uid=")] == [
        f"smith-uid={vm['service_id']}"
    ]
    assert set(config["net0"].split(",")[1:]) == {f"bridge={place.other_bridge}", "tag=12"}
    assert (config["ipconfig0"], config["nameserver"]) == ("ip=192.0.2.10/24,gw=192.0.2.1", "192.0.2.53")
    assert urllib.parse.unquote(config["sshkeys"]) == f"{KEY} a+b/c@host\n{KEY} %20"
    assert any(f"vm-{vm['vmid']}-cloudinit" in str(value) for value in config.values())
    expected = {"vmid": vm["vmid"], "node": place.node, "name": vm["name"], "status": "stopped", "cores": 2}
    assert expected.items() <= done.result.items()
    assert (done.result["memory_mib"], done.result["disk_gib"], done.result["tags"]) == (
        2048,
        larger_gib,
        ["prod", "smith", "web"],
    )
    assert (done.result["changed"], done.result["adopted"], done.result["reboot_required"]) == (True, False, False)
    assert done.result["mac_address"] in config["net0"]
    assert len(done.result["upids"]) == 2
    assert done.module_runs <= 3


@pytest.mark.lab
@pytest.mark.by_hand
def test_a_second_create_changes_nothing(bench: Bench) -> None:
    vm = bench.vm(
        disk_gib=bench.place.disk_gib + 1, description="x", cloud_init={"user": "admin", "password": "swordfish"}
    )
    bench.play("create", vm)
    done, changes = bench.changing_requests(lambda: bench.play("create", vm))
    assert (done.rc, done.changed, changes) == (0, 0, [])
    assert (done.result["changed"], done.result["adopted"], done.module_runs) == (False, True, 0)


def test_the_wait_for_a_clone_polls_its_lock_only(bench: Bench) -> None:
    bench.pve.control("time_scale", scale=0.5)
    vm, node = bench.vm(), bench.place.node
    bench.pve.reset_request_log()
    done = bench.play("create", vm)
    requested_paths = [entry["path"] for entry in bench.pve.request_log()]
    guest = f"/nodes/{node}/qemu/{vm['vmid']}"
    look_ups, lock_polls = requested_paths.count(f"{guest}/pending"), requested_paths.count(f"{guest}/status/current")
    assert done.rc == 0, done.output
    assert look_ups <= 3, "one look-up at the clone's beginning, one at its end, one after the configuration"
    assert lock_polls >= look_ups + 3
    assert done.result["upids"][0].split(":")[5] == "qmclone"


@pytest.mark.lab
def test_the_first_change_after_the_clone_writes_the_marker(bench: Bench) -> None:
    vm = bench.vm()
    _done, changes = bench.changing_requests(lambda: bench.play("create", vm))
    node, template = bench.place.node, bench.place.template
    assert changes == [f"POST /nodes/{node}/qemu/{template}/clone", f"PUT /nodes/{node}/qemu/{vm['vmid']}/config"]
    put = bench.pve.changing_requests()[1]["params"]
    assert f"smith-uid={vm['service_id']}" in put["description"]
    assert {"tags", "cores", "memory"} <= set(put)


def test_create_finds_a_template_by_its_name_on_another_node(bench: Bench) -> None:
    vm = bench.vm(template="ubuntu-24.04", disk_gib=10)
    del vm["template_vmid"]
    done = bench.play("create", vm)
    assert (done.rc, done.result["node"], done.result["disk_gib"]) == (0, "pve2", 10)


def test_create_uses_the_requested_storage_and_pool(bench: Bench) -> None:
    vm = bench.vm(storage="ceph", pool="smith")
    assert bench.play("create", vm).rc == 0
    guest = bench.guest(vm)
    assert guest["config"]["scsi0"].startswith("ceph:")
    assert guest["pool"] == "smith"


def test_create_can_make_a_linked_clone(bench: Bench) -> None:
    vm = bench.vm(full_clone=False, storage="ceph")  # a linked clone is on the template's storage
    assert bench.play("create", vm).rc == 0
    assert bench.guest(vm)["config"]["scsi0"].startswith("local-lvm:")


@pytest.mark.lab
@pytest.mark.by_hand
def test_a_second_start_or_stop_changes_nothing(bench: Bench) -> None:
    vm = bench.add_vm()
    for action, status in (("start", "running"), ("stop", "stopped")):
        first = bench.play(action, vm)
        again = bench.play(action, vm)
        assert (first.rc, first.result["status"], first.result["changed"], first.module_runs) == (0, status, True, 1)
        assert (again.rc, again.result["status"], again.result["changed"], again.module_runs) == (0, status, False, 0)
        assert bench.guest(vm)["status"] == status


def test_start_reports_the_guests_address_without_link_local_ones(bench: Bench) -> None:
    vm = bench.add_vm(config={"ipconfig0": "ip=192.0.2.20/24"})
    assert bench.play("start", vm).result["ip_addresses"] == ["192.0.2.20"]


def test_start_succeeds_without_the_address_of_the_guest(bench: Bench) -> None:
    vm = bench.add_vm(config={"agent": "0"})
    done = bench.play("start", vm)
    assert (done.rc, done.result["status"], done.result["ip_addresses"]) == (0, "running", [])


def test_an_address_that_appears_late_is_in_the_next_actions_result(bench: Bench) -> None:
    vm = bench.add_vm(config={"ipconfig0": "ip=192.0.2.21/24"})
    bench.pve.control("behave", vmid=vm["vmid"], agent=False)
    assert bench.play("start", vm).result["ip_addresses"] == []
    bench.pve.control("behave", vmid=vm["vmid"], agent=True)
    for action, more in (("snapshot", {}), ("update", {"cores": 3}), ("stop", {})):
        assert bench.play(action, {**vm, **more}).result["ip_addresses"] == ["192.0.2.21"], action
    assert bench.play("update", vm).result["ip_addresses"] == []


def test_a_guest_that_ignores_the_shutdown_is_switched_off(bench: Bench) -> None:
    vm = bench.add_vm(status="running")
    bench.pve.control("behave", vmid=vm["vmid"], acpi=False)
    done = bench.play("stop", vm)
    assert (done.rc, bench.guest(vm)["status"]) == (0, "stopped")


@pytest.mark.lab
def test_restart_restarts_a_running_vm_only(bench: Bench) -> None:
    vm = {**bench.add_vm(status="running"), "force": bench.place.is_real}  # a real guest may not react to a shutdown
    done, changes = bench.changing_requests(lambda: bench.play("restart", vm))
    assert (done.rc, done.result["status"], done.module_runs) == (0, "running", 1), done.output
    restart_request = "reset" if bench.place.is_real else "reboot"
    assert changes == [f"POST /nodes/{bench.place.node}/qemu/{vm['vmid']}/status/{restart_request}"]
    assert bench.play("stop", vm).rc == 0
    assert bench.play("restart", vm).code == "VM_NOT_RUNNING"


@pytest.mark.lab
def test_update_sends_only_differing_options(bench: Bench) -> None:
    vm = bench.add_vm()
    larger_gib, guest_path = bench.place.disk_gib + 1, f"/nodes/{bench.place.node}/qemu/{vm['vmid']}"
    done, changes = bench.changing_requests(lambda: bench.play("update", {**vm, "cores": 4, "disk_gib": larger_gib}))
    assert done.rc == 0, done.output
    assert changes == [f"PUT {guest_path}/resize", f"PUT {guest_path}/config"]
    assert bench.pve.changing_requests()[1]["params"] == {"cores": "4"}
    assert (done.result["cores"], done.result["disk_gib"], done.result["reboot_required"]) == (*(4, larger_gib, False),)


@pytest.mark.lab
def test_update_without_a_difference_changes_nothing(bench: Bench) -> None:
    vm = bench.add_vm()
    done, changes = bench.changing_requests(lambda: bench.play("update", vm))
    assert (done.rc, done.module_runs, changes) == (0, 0, [])


@pytest.mark.lab
def test_update_of_a_running_vm_reports_reboot_required_until_the_reboot(bench: Bench) -> None:
    vm = bench.add_vm(status="running")
    wanted = {**vm, "cores": 4, "memory_mib": 4096, "tags": ["new"]}
    done = bench.play("update", wanted)
    assert (done.result["reboot_required"], done.result["cores"], done.result["memory_mib"]) == (True, 4, 4096)
    assert bench.guest(vm)["config"]["tags"] == "new;smith;web"
    again, changes = bench.changing_requests(lambda: bench.play("update", wanted))
    assert (again.result["reboot_required"], changes) == (True, [])
    for action in ("stop", "start"):
        assert bench.play(action, vm).result["reboot_required"] is False


@pytest.mark.lab
def test_update_keeps_the_marker_and_the_mac_address(bench: Bench) -> None:
    vm, bridge = bench.add_vm(), bench.place.other_bridge
    mac = bench.guest(vm)["config"]["net0"].split(",")[0]
    bench.play("update", {**vm, "description": "other words", "network": {"bridge": bridge, "vlan": 7}})
    config = bench.guest(vm)["config"]
    assert config["description"].splitlines()[-1] == f"smith-uid={vm['service_id']}"
    assert {mac, f"bridge={bridge}", "tag=7"} <= set(config["net0"].split(","))


@pytest.mark.lab
def test_a_named_snapshot_is_taken_once_and_can_be_rolled_back(bench: Bench) -> None:
    vm = bench.add_vm()
    first = bench.play("snapshot", {**vm, "snapshot": "before"})
    assert (first.rc, first.result["snapshot"], bench.guest(vm)["snapshots"]) == (0, "before", ["before"])
    again, changes = bench.changing_requests(lambda: bench.play("snapshot", {**vm, "snapshot": "before"}))
    assert (again.rc, changes) == (0, [])
    bench.play("update", {**vm, "cores": 8})
    done = bench.play("rollback", vm)
    assert (done.rc, done.result["snapshot"], done.result["cores"]) == (0, "before", 2)


@pytest.mark.lab
def test_a_snapshot_without_a_name_gets_the_next_free_name(bench: Bench) -> None:
    vm = bench.add_vm()
    names = [bench.play("snapshot", vm).result["snapshot"] for _ in range(2)]
    assert names == ["smith-1", "smith-2"]


@pytest.mark.lab
def test_delete_removes_a_running_vm_and_succeeds_on_a_missing_one(bench: Bench) -> None:
    vm = bench.add_vm(status="running")
    first = bench.play("delete", vm)
    assert (first.rc, first.result["status"], first.result["changed"]) == (0, "absent", True)
    assert bench.pve.guest(vm["vmid"]) is None
    assert first.module_runs <= 3
    again, changes = bench.changing_requests(lambda: bench.play("delete", vm))
    assert (again.rc, again.result["status"], again.result["changed"], changes) == (0, "absent", False, [])


def test_a_vm_that_was_migrated_is_found_on_its_new_node(bench: Bench) -> None:
    vm = bench.add_vm(node="pve2")
    done = bench.play("start", {**vm, "node": "pve1"})
    assert (done.rc, done.result["node"]) == (0, "pve2")


@pytest.mark.lab
@pytest.mark.parametrize("action", ACTIONS)
def test_check_mode_changes_nothing_and_reports_the_planned_changes(bench: Bench, action: str) -> None:
    if action == "create":
        vm = bench.vm(cloud_init={"password": "swordfish"})
    else:
        place = bench.place
        needs(action != "migrate" or place.second_node, "SECOND_NODE")
        needs(action != "backup" or place.backup_storage, "BACKUP_STORAGE")
        vm = bench.add_vm(status="stopped" if action in ("start", "rollback") else "running")
        vm |= {"cores": 6, "disk_gib": place.disk_gib + 1, "target_node": place.second_node}
        vm |= {"backup_storage": place.backup_storage, "final_backup": place.backup_storage}
    if action == "rollback":
        bench.play("snapshot", vm)
    before = bench.pve.guest(vm["vmid"])
    done, changes = bench.changing_requests(lambda: bench.play(action, vm, "--check"))
    assert (done.rc, changes) == (0, []), done.output
    assert done.result["planned"]
    assert "swordfish" not in done.output
    assert bench.pve.guest(vm["vmid"]) == before


def test_values_are_never_evaluated_as_templates(bench: Bench, tmp_path: Path) -> None:
    touched_file = tmp_path / "sprung"
    text = "{{ lookup('pipe', 'touch " + str(touched_file) + "') }}"
    vm = bench.vm(
        description=text, cloud_init={"user": "admin", "password": text, "ssh_public_keys": [f"{KEY} {text}"]}
    )
    done = bench.play("create", vm)
    assert not touched_file.exists()
    assert text in bench.guest(vm)["config"]["description"], done.output
    refused = bench.play("start", {**vm, "name": text})
    assert (refused.code, touched_file.exists()) == ("VM_IDENTITY_MISMATCH", False)


@pytest.mark.lab
@pytest.mark.by_hand
def test_verbose_output_shows_no_secret(bench: Bench) -> None:
    vm = bench.vm(cloud_init={"user": "admin", "password": "swordfish"})
    done = bench.play("create", vm, "-vvv")
    assert done.rc == 0, done.output
    assert "swordfish" not in done.output
    assert bench.pve.token_secret not in done.output


@pytest.mark.lab
def test_the_login_may_come_from_a_credentials_file(bench: Bench, tmp_path: Path) -> None:
    env = bench.pve.env()
    credentials = tmp_path / "credentials.yml"
    login = {
        "api_host": env["PROXMOX_HOST"],
        "api_port": int(env["PROXMOX_PORT"]),
        "api_user": env["PROXMOX_USER"],
        "api_token_id": env["PROXMOX_TOKEN_ID"],
        "api_token_secret": env["PROXMOX_TOKEN_SECRET"],
        "validate_certs": True,
    }
    credentials.write_text(yaml.safe_dump(login))
    empty = dict.fromkeys(env, "") | {"PROXMOX_CA_BUNDLE": env["PROXMOX_CA_BUNDLE"]}
    done = bench.play("start", bench.add_vm(), SMITH_CREDENTIALS_FILE=str(credentials), **empty)
    assert (done.rc, done.result["status"]) == (0, "running"), done.output


def test_every_action_has_a_playbook() -> None:
    assert {path.stem for path in (ROOT / "playbooks").glob("*.yml")} == set(ACTIONS)


def test_the_documented_custom_action_works(bench: Bench, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "actions.md").read_text()
    example = page.partition("## An action of your own")[2].partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "tag.yml").write_text(example)
    vm = {**bench.add_vm(), "tags": ["gold"], "properties": {"anything": [1]}}
    done = bench.play("tag", vm, folder=tmp_path)
    assert (done.rc, done.result["tags"]) == (0, ["gold", "smith", "web"]), done.output
