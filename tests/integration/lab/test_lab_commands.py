"""`smith lab`: the commands of README.md work in it, and each of its faults can be begun and ended."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from smith_lab.lab_command import LabIsRunning, main
from smith_lab.lab_faults import FAULTS, UnknownFault, begin_fault, clear_faults
from smith_lab.running_lab import NoLab, RunningLab, find_lab, read_lab
from smith_lab.system import run_lab_system, wait_for

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
START_LIMIT_S = 60
COMMAND_LIMIT_S = 120


@dataclass(kw_only=True)
class Lab:
    """A running `smith lab`, and a shell that has read the file with its settings, lab.env."""

    folder: Path
    process: subprocess.Popen[str]
    agent: subprocess.Popen[bytes] | None = None

    def shell(self, command: str, code: int = 0) -> str:
        """Run the command, as in README.md, in a shell in the folder above `.lab`; return its output."""
        done = subprocess.run(
            ["/bin/sh", "-c", f". .lab/lab.env && {command}"],
            cwd=self.folder, env={"HOME": str(self.folder), "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, check=False, timeout=COMMAND_LIMIT_S,
        )  # fmt: skip
        assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def start_agent(self) -> None:
        with (self.folder / "log").open("wb") as log:
            self.agent = subprocess.Popen(
                ["/bin/sh", "-c", ". .lab/lab.env && exec smith run"],
                cwd=self.folder, env={"HOME": str(self.folder), "PATH": "/usr/bin:/bin"}, stdout=log, stderr=log,
            )  # fmt: skip


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    command = [sys.executable, "-m", "executor", "lab", "--folder", ".lab"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    running = Lab(folder=tmp_path, process=process)
    try:
        wait_for((tmp_path / ".lab" / "lab.env").exists, START_LIMIT_S, "the lab")
        yield running
    finally:
        for child in (running.agent, process):
            if child is not None:
                child.terminate()
                child.wait(START_LIMIT_S)
        assert process.stdout is not None
        process.stdout.close()


def commands_of_readme() -> list[str]:
    """Return the commands of the block of README.md that begins with lab.env, without their comments."""
    block = re.search(r"```console\n\$ \. \.lab/lab\.env\n(.*?)```", README, re.DOTALL)
    assert block
    return [line.removeprefix("$ ").partition("  #")[0].strip() for line in block[1].splitlines()]


@pytest.mark.timeout(300)
def test_a_newcomer_orders_the_first_vm_with_the_commands_of_readme(lab: Lab) -> None:
    control = find_lab(lab.folder / ".lab").stand_in(lab.folder / ".lab")
    control.control("time_scale", scale=0)
    lab.start_agent()
    outputs = {command: lab.shell(command) for command in commands_of_readme()}
    assert re.search(r"web-1: Stopped, VMID \d+", outputs["smith lab order web-1 --image debian-12"])
    assert re.search(r"web-1: Started, VMID \d+", outputs["smith lab start web-1"])
    (guest,) = (guest for guest in control.guests() if guest["name"].startswith("web-1"))
    assert guest["status"] == "running"
    assert "create" in outputs["smith jobs show 1"]
    assert lab.shell("smith health").startswith("alive")

    lab.shell("smith lab fault storage-full")
    failed = lab.shell("smith lab order full-1", code=1)
    assert "CAPACITY" in failed
    command_in_output = re.search(r"smith jobs show \w+", failed)
    assert command_in_output
    assert "No space left" in lab.shell(command_in_output[0])
    lab.shell("smith lab fault clear")
    assert "there is a service web-1 already" in lab.shell("smith lab order web-1", code=1)
    assert "services: full-1, web-1" in lab.shell("smith lab stop web-2", code=1)
    assert "web-1" in lab.shell("smith lab list")


def test_doctor_has_no_warning_in_a_new_lab_and_the_lab_prints_paths_without_a_line_break(lab: Lab) -> None:
    doctor_output = lab.shell("smith doctor")
    assert [line for line in doctor_output.splitlines() if re.search(r"  (warning|failed|skipped)  ", line)] == []
    assert "What to do" not in doctor_output
    assert "TOKEN=" not in (lab.folder / ".lab" / "lab.env").read_text()
    assert "SMITH_LOG_FORMAT" not in (lab.folder / ".lab" / "lab.env").read_text()
    with pytest.raises(LabIsRunning):
        main(folder=lab.folder / ".lab")
    lab.process.terminate()
    assert lab.process.stdout is not None
    printed = lab.process.stdout.read()  # the commands to try in the lab
    assert f". {lab.folder / '.lab' / 'lab.env'} && smith run" in printed
    assert lab.process.wait(START_LIMIT_S) == 0
    assert read_lab(lab.folder / ".lab") is None
    with pytest.raises(NoLab, match="start `smith lab`"):
        find_lab(lab.folder / ".lab")


def test_each_fault_can_be_begun_twice_and_clearing_restores_the_lab(tmp_path: Path) -> None:
    with run_lab_system(tmp_path) as system:
        ids = system.ids
        RunningLab(
            fulcrum_base_url=system.fulcrum_base_url,
            control_port=system.proxmox.control_port,
            consumer_id=ids.consumer_id,
            agent_id=ids.agent_id,
            service_type_id=ids.service_type_id,
            container_type_id=ids.container_type_id,
        ).write(tmp_path)
        before = (system.proxmox.storages()["local-lvm"]["avail"], system.proxmox.guests())
        for fault in FAULTS:
            begin_fault(tmp_path, fault.name)
            begin_fault(tmp_path, fault.name)
        clear_faults(tmp_path)
        after = (system.proxmox.storages()["local-lvm"]["avail"], system.proxmox.guests())
        assert [guest["name"] for guest in after[1]] == [guest["name"] for guest in before[1]]
        assert after[0] == before[0]
        assert system.core.call_lab("GET", "faults") == []
        with pytest.raises(UnknownFault, match="storage-full"):
            begin_fault(tmp_path, "nothing")
