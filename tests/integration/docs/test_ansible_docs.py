"""docs/ansible.md: its commands are run unchanged, with the checkout as the collection, on a Proxmox stand-in."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "ansible.md").read_text(encoding="utf-8")
#: A block of the page: its language and its text.
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = Path(sysconfig.get_path("scripts"))
VMID = 30123
TIMEOUT_S = 120


@pytest.fixture
def pve(tmp_path: Path) -> Iterator[ProxmoxStandIn]:
    with running_stand_in(folder=tmp_path / "stand-in") as running:
        yield running


@dataclass(kw_only=True)
class Reader:
    """Does what the page says in an empty folder: writes its files, and runs its commands in their order."""

    folder: Path
    pve: ProxmoxStandIn
    env: dict[str, str]
    outputs: dict[str, str] = field(default_factory=dict)

    def follow_page(self) -> Iterator[str]:
        """Yield each command after it has been run."""
        for language, text in BLOCK.findall(PAGE):
            if language == "yaml":
                self._write(text)
                continue
            for line in text.splitlines():
                command = line.removeprefix("$ ")
                self._run(command)
                yield command

    def _write(self, text: str) -> None:
        name = text.splitlines()[0].removeprefix("# ")
        document = yaml.safe_load(text)
        if "smith_login" in document:  # a reader writes the login of their own cluster; here it is the stand-in's
            settings = self.pve.env()
            document["smith_login"] |= {
                "api_host": settings["PROXMOX_HOST"],
                "api_port": int(settings["PROXMOX_PORT"]),
                "api_user": settings["PROXMOX_USER"],
                "api_token_id": settings["PROXMOX_TOKEN_ID"],
                "api_token_secret": self.pve.token_secret,
                "ca_bundle": settings["PROXMOX_CA_BUNDLE"],
            }
        (self.folder / name).write_text(yaml.safe_dump(document))

    def _run(self, command: str) -> None:
        program, *arguments = shlex.split(command)
        if program == "export":
            name, _, value = arguments[0].partition("=")
            self.env[name] = value.replace("~", str(self.folder))
            return
        if program in ("ansible-galaxy", "python"):  # an installation, which test_installed_collection.py tests
            return
        done = subprocess.run(
            [str(PROGRAMS / program), *arguments],
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert self.pve.token_secret not in done.stdout + done.stderr
        self.outputs[command] = done.stdout


def test_the_commands_of_the_page_work_with_a_login_from_ansible_vault(tmp_path: Path, pve: ProxmoxStandIn) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    (folder / ".vault-password").write_text("correct horse\n")
    env = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    env |= {"HOME": str(folder), "ANSIBLE_COLLECTIONS_PATH": f"{ROOT / '.collections'}:{sysconfig.get_path('purelib')}"}
    reader = Reader(folder=folder, pve=pve, env=env)
    states = {}
    for command in reader.follow_page():
        guest = pve.guest(VMID)
        states[command] = None if guest is None else (guest["status"], str(guest["config"]["cores"]))
    assert (folder / "login.yml").read_text().startswith("$ANSIBLE_VAULT;")
    play = "ansible-playbook agent_smith.proxmox.{} -e @login.yml -e @{}.yml{}".format
    check = " --check --diff"
    assert {command: state for command, state in states.items() if command.startswith("ansible-playbook")} == {
        play("create", "web", check): None,
        play("create", "web", ""): ("stopped", "1"),
        play("start", "web", ""): ("running", "1"),
        play("update", "bigger", check): ("running", "1"),
        play("update", "bigger", ""): ("running", "2"),
        play("snapshot", "snapshot", ""): ("running", "2"),
        play("rollback", "snapshot", ""): states[play("rollback", "snapshot", "")],
        play("delete", "web", check): states[play("rollback", "snapshot", "")],
        play("delete", "web", ""): None,
    }
    assert re.search(r"^\+.*cores\W+2", reader.outputs[play("update", "bigger", check)], re.MULTILINE)
    assert '"vmid": 30123' in reader.outputs[play("start", "web", "")]
