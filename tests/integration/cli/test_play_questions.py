"""`smith play` on a terminal: it asks for missing members of `vm`, shows its plan, and asks before it changes a VM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from support.cli_world import Cli
from support.played_vms import NUMBERS, made, mapped, on_a_terminal


@pytest.fixture(scope="module")
def pve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxmoxStandIn]:
    with running_stand_in(folder=tmp_path_factory.mktemp("stand-in")) as running:
        yield running


@pytest.fixture
def smith(tmp_path: Path, pve: ProxmoxStandIn) -> Iterator[Cli]:
    cli = Cli(tmp_path)
    cli.env |= pve.env() | {"PROXMOX_TEMPLATES": "debian-12=9000"}
    yield cli
    pve.control("clear_faults")


def test_on_a_terminal_the_command_asks_for_missing_members_of_vm(smith: Cli, pve: ProxmoxStandIn) -> None:
    vmid = next(NUMBERS)
    answers = {"service_id": "", "vmid": f"x\n{vmid}", "name": "", "cores": "2", "memory_mib": "512", "disk_gib": "8"}
    answers |= {"template": "debian-12"}
    output, rc = on_a_terminal(smith, ["play", "create", "--yes"], answers)
    assert rc == 0, output
    assert "vmid must be a whole number" in output
    guest = pve.guest(vmid)
    assert guest is not None
    assert f"smith-uid={guest['config']['description'].strip().partition('=')[2]}" in guest["config"]["description"]
    assert guest["name"].startswith("vm-")


def test_on_a_terminal_a_deletion_shows_its_plan_and_asks(smith: Cli, pve: ProxmoxStandIn) -> None:
    vm = mapped(smith, made(pve, status="running"))
    question = f"Run delete on VM {vm['vmid']} ({vm['name']}) of service {vm['service_id']}?"
    arguments = ["play", "delete", "--service", vm["name"]]
    output, rc = on_a_terminal(smith, arguments, {question: "n"})
    assert (rc, pve.guest(vm["vmid"])["status"]) == (1, "running"), output  # type: ignore[index]
    assert "the VM will be destroyed with its disks" in output
    assert "PLAY RECAP" not in output
    output, rc = on_a_terminal(smith, arguments, {question: "y"})
    assert (rc, pve.guest(vm["vmid"])) == (0, None), output
    assert "PLAY RECAP" in output


def test_on_a_terminal_every_action_that_changes_something_shows_its_plan_and_asks(
    smith: Cli, pve: ProxmoxStandIn
) -> None:
    vm = made(pve)
    question = f"Run start on VM {vm['vmid']} ({vm['name']}) of service {vm['service_id']}?"
    arguments = ["play", "start", "--vmid", str(vm["vmid"])]
    output, rc = on_a_terminal(smith, arguments, {question: "n"})
    assert (rc, pve.guest(vm["vmid"])["status"]) == (1, "stopped"), output  # type: ignore[index]
    assert "the VM will be started" in output
    output, rc = on_a_terminal(smith, arguments, {question: "y"})
    assert (rc, pve.guest(vm["vmid"])["status"]) == (0, "running"), output  # type: ignore[index]
    output, rc = on_a_terminal(smith, arguments, {})  # the VM is running already, so there is nothing to ask
    assert (rc, "nothing would be changed" in output, "Run start" in output) == (0, True, False), output
    pve.control("configure", vmid=vm["vmid"], values={"lock": "backup"})
    output, rc = on_a_terminal(smith, ["play", "stop", "--vmid", str(vm["vmid"])], {})
    assert (rc, "VM_LOCKED" in output, "with --yes it runs without a plan" in output) == (1, True, True), output


def test_on_a_terminal_the_plan_of_several_vms_is_shown_before_the_question(smith: Cli, pve: ProxmoxStandIn) -> None:
    vms = [made(pve), made(pve)]
    for vm in vms:
        pve.control("configure", vmid=vm["vmid"], values={"tags": "smith;asked"})
    arguments = ["play", "start", "--hosts", "tag_asked"]
    output, rc = on_a_terminal(smith, arguments, {"Run start on 2 VMs?": "n"})
    assert (rc, output.count("the VM will be started"), "PLAY RECAP" in output) == (1, 2, False), output
    assert [pve.guest(vm["vmid"])["status"] for vm in vms] == ["stopped", "stopped"]  # type: ignore[index]
