"""Cloud-init values of a running VM: Proxmox applies them at once, and the guest reads them at its next boot."""

from __future__ import annotations

from typing import Any

import pytest
from both_ways import Play
from play_bench import Bench


def add_running_vm(bench: Bench, **config: str) -> dict[str, Any]:
    """Add a running VM with a cloud-init drive; return its variables, which request nothing."""
    vmid = bench.vm()["vmid"] + 1  # the VMID of the VM that is added next
    drive = {"ide2": f"local-lvm:vm-{vmid}-cloudinit,media=cdrom", "ciuser": "admin", "ipconfig0": "ip=dhcp"}
    vm = bench.add_vm(status="running", config={**drive, **config})
    assert vm["vmid"] == vmid
    return {name: vm[name] for name in ("service_id", "vmid", "name", "node", "timeout_s", "address_timeout_s")}


def request_to_generate_the_drive(vm: dict[str, Any]) -> str:
    return f"PUT /nodes/pve1/qemu/{vm['vmid']}/cloudinit"


def request_to_configure(vm: dict[str, Any]) -> str:
    return f"PUT /nodes/pve1/qemu/{vm['vmid']}/config"


@pytest.mark.parametrize(
    "change",
    [
        {"cloud_init": {"user": "ops"}},
        {"cloud_init": {"password": "swordfish"}},
        {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9/24"}},  # Proxmox does not list a changed ipconfig0
        {"network": {"dns_servers": ["192.0.2.53"]}},
    ],
)
def test_a_changed_value_generates_the_drive_again_and_needs_a_reboot(
    bench: Bench, play: Play, change: dict[str, Any]
) -> None:
    vm = add_running_vm(bench)
    done, changes = bench.changing_requests(lambda: play("update", {**vm, **change}))
    assert (done.code, done.result["changed"], done.result["reboot_required"]) == ("", True, True)
    assert changes == [request_to_configure(vm), request_to_generate_the_drive(vm)]
    assert bench.guest(vm)["pending"] == {}


def test_an_allowed_reboot_gives_the_guest_its_new_values(bench: Bench) -> None:
    vm = add_running_vm(bench)
    done, changes = bench.changing_requests(
        lambda: bench.play("update", {**vm, "cloud_init": {"user": "ops"}, "allow_reboot": True})
    )
    assert (done.rc, done.result["reboot_required"], done.result["status"]) == (0, False, "running"), done.output
    assert changes == [
        request_to_configure(vm),
        request_to_generate_the_drive(vm),
        f"POST /nodes/pve1/qemu/{vm['vmid']}/status/reboot",
    ]


@pytest.mark.parametrize("change", [{"cores": 4}, {"cloud_init": {"user": "admin"}}, {"network": {"vlan": 7}}])
def test_without_a_changed_value_the_drive_is_not_generated_again(bench: Bench, change: dict[str, Any]) -> None:
    vm = add_running_vm(bench)
    done, changes = bench.changing_requests(lambda: bench.play("update", {**vm, **change}))
    assert (done.rc, request_to_generate_the_drive(vm) in changes) == (0, False), done.output


def test_for_a_stopped_vm_the_drive_is_not_generated_again_and_no_reboot_is_needed(bench: Bench) -> None:
    vm = add_running_vm(bench)
    bench.pve.control("power", vmid=vm["vmid"], status="stopped")
    done, changes = bench.changing_requests(lambda: bench.play("update", {**vm, "cloud_init": {"user": "ops"}}))
    assert (done.rc, done.result["reboot_required"], changes) == (0, False, [request_to_configure(vm)]), done.output


def test_the_next_run_generates_the_drive_that_an_earlier_run_could_not_generate(bench: Bench) -> None:
    vm = {**add_running_vm(bench), "cloud_init": {"user": "ops"}}
    bench.pve.fail("PUT", f"/nodes/*/qemu/{vm['vmid']}/cloudinit", text="VM is locked (backup)")
    assert bench.play("update", vm).rc == 0
    checked, changes = bench.changing_requests(lambda: bench.play("update", vm, "--check"))
    assert (checked.rc, checked.result["changed"], changes) == (0, True, []), checked.output
    done, changes = bench.changing_requests(lambda: bench.play("update", vm))
    assert (done.rc, done.result["changed"], done.result["reboot_required"]) == (0, True, True), done.output
    assert changes == [request_to_generate_the_drive(vm)]
    again, changes = bench.changing_requests(lambda: bench.play("update", vm))
    assert (again.rc, again.result["changed"], changes) == (0, False, []), again.output


@pytest.mark.parametrize("answer", [{"text": "VM is locked (backup)"}, {"status": 0}, {"status": 403, "text": "no"}])
def test_a_drive_that_cannot_be_generated_causes_a_warning(bench: Bench, answer: dict[str, Any]) -> None:
    """The VM is configured as requested, and Proxmox generates the drive when it starts the VM."""
    vm = add_running_vm(bench)
    bench.pve.fail("PUT", f"/nodes/*/qemu/{vm['vmid']}/cloudinit", **answer)
    done = bench.play("update", {**vm, "cloud_init": {"user": "ops"}})
    assert (done.rc, done.result["reboot_required"]) == (0, True), done.output
    assert f"The cloud-init drive of VM {vm['vmid']} was not generated again" in done.output


def test_a_drive_that_was_generated_although_the_answer_was_lost_causes_no_warning(bench: Bench) -> None:
    vm = add_running_vm(bench)
    bench.pve.fail("PUT", f"/nodes/*/qemu/{vm['vmid']}/cloudinit", status=0, after=True)
    done = bench.play("update", {**vm, "cloud_init": {"user": "ops"}})
    assert (done.rc, done.result["reboot_required"]) == (0, True), done.output
    assert "was not generated again" not in done.output


def test_a_value_that_the_drive_lacks_but_that_is_not_requested_causes_no_change(bench: Bench) -> None:
    """An update changes only what it requests."""
    vm = add_running_vm(bench)
    bench.play("update", {**vm, "cloud_init": {"user": "ops"}})
    bench.pve.fail("PUT", f"/nodes/*/qemu/{vm['vmid']}/cloudinit")
    bench.play("update", {**vm, "network": {"dns_servers": ["192.0.2.53"]}})
    done, changes = bench.changing_requests(lambda: bench.play("update", {**vm, "cloud_init": {"user": "ops"}}))
    assert (done.rc, done.result["changed"], changes) == (0, False, []), done.output
