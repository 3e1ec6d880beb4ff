"""Values that a running guest does not apply: Proxmox keeps them as pending until the guest is started again."""

from __future__ import annotations

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import failures
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


@pytest.mark.proxmox(
    behaviour="a value that a running container does not apply is 400 `unable to hotplug`, and stays pending",
    versions="8, 9",
    source="pve-container: PVE/LXC/Config.pm, vmconfig_hotplug_pending",
    reaction="completes with `reboot_required` and a warning",
)
def test_a_value_that_the_running_container_does_not_apply_needs_a_reboot(bench: Bench, pve_version: str) -> None:
    container = bench.add_container(status="running")
    bench.pve.control("behave", vmid=container["vmid"], keeps_devices=True)
    done = bench.play("update", {**container, "networks": [{"mac": MAC}], "onboot": True})
    assert (done.rc, done.result["reboot_required"]) == (0, True), (pve_version, done.output)
    assert "unable to hotplug net0: " in done.output
    assert MAC in bench.guest(container)["pending"]["net0"]


def test_the_answer_hotplug_problem_is_not_classified_as_an_invalid_request() -> None:
    """An operator's playbook classifies a module's answer with this function, without the look-up of an action."""
    for text in ("hotplug problem - still busy in guest?", "unable to hotplug net0: exit code 2"):
        failed = {"failed": True, "msg": f"400 Bad Request: Parameter verification failed. - {{'net0': '{text}'}}"}
        assert failures.proxmox_failure(failed).startswith("VM_STATE: ")
        assert failures.is_outcome_unknown(failed)
