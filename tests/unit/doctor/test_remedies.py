"""A remedy (the command or setting that a check proposes) is one line. Names from outside are quoted for the shell."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from executor.doctor.checks import command_line, quoted_setting_line
from executor.doctor.fulcrum_types import command_to_add_service_type
from executor.fulcrum.types import FulcrumAgent

NAMES = ("plain", "with space", "it's", "$(touch x)", "; rm -rf ~ #", "two\nlines\x1b[31m", "back\\slash", "Zoë ☃", "")


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_a_name_as_one_word(name: str) -> None:
    line = command_line("printf", "%s", name)
    assert line.isprintable()
    assert subprocess.run(["/bin/bash", "-c", line], capture_output=True, check=True).stdout.decode() == name


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_the_value_of_a_setting_unchanged(name: str) -> None:
    script = f'{quoted_setting_line("NAME", name)}; printf %s "$NAME"'
    assert subprocess.run(["/bin/bash", "-c", script], capture_output=True, check=True).stdout.decode() == name


def test_a_placeholder_stays_readable() -> None:
    assert command_line("qm", "set", 9000, "--ide2", "<storage>:cloudinit") == "qm set 9000 --ide2 <storage>:cloudinit"
    assert quoted_setting_line("PROXMOX_TEMPLATES", "suse-15=<vmid>") == "PROXMOX_TEMPLATES=suse-15=<vmid>"
    assert quoted_setting_line("PROXMOX_BRIDGES", "") == "PROXMOX_BRIDGES="


def test_the_names_of_an_agent_and_its_provider_are_quoted() -> None:
    participant = {"id": "4f1c2b00-0000-4000-8000-000000000002", "name": "it's; ls"}
    agent = FulcrumAgent.model_validate(
        {"id": "4f1c2b00-0000-4000-8000-000000000001", "name": "a b", "participant": participant}
    )
    words = shlex.split(command_to_add_service_type(agent))
    assert words[-4:] == ["--agent", "a b", "--provider", "it's; ls"]
