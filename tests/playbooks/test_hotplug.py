"""Values that a running VM does not apply: they are pending until its next start."""

from __future__ import annotations

import pytest
from play_bench import Bench

MAC = "BC:24:11:0A:0B:0C"


@pytest.mark.proxmox(
    behaviour="a value that cannot be hot-plugged is answered with 400 `hotplug problem`, and stays pending",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, update_vm_api",
    reaction="completes with `reboot_required` and a warning; with `allow_reboot` it reboots",
)
@pytest.mark.parametrize("may_reboot", [False, True])
def test_a_value_that_the_running_vm_does_not_apply_needs_a_reboot(
    bench: Bench, pve_version: str, may_reboot: bool
) -> None:
    vm = bench.add_vm(status="running")
    bench.pve.control("behave", vmid=vm["vmid"], keeps_devices=True)
    wanted = {**vm, "networks": [{"mac": MAC}], "onboot": True, "allow_reboot": may_reboot}
    done = bench.play("update", wanted)
    assert (done.rc, done.result["reboot_required"]) == (0, not may_reboot), (pve_version, done.output)
    guest = bench.guest(vm)
    assert str(guest["config"]["onboot"]) == "1"
    assert MAC in (guest["config"]["net0"] if may_reboot else guest["pending"]["net0"])
    again, changes = bench.changing_requests(lambda: bench.play("update", {**wanted, "allow_reboot": False}))
    assert (again.rc, again.result["reboot_required"], changes) == (0, not may_reboot, []), again.output
