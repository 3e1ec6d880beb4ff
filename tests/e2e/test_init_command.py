"""`smith init`: from a new Proxmox and a new FulcrumCore to the first VM, also if it is killed after each change."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from smith_lab.fulcrum_setup import SEED_TOKEN, AdminClient
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from smith_lab.simulator.control import SimulatorThread, running_simulator
from smith_lab.system import SETTING_PREFIXES, wait_for
from support.terminal import TerminalProgram

from executor.proxmox.setup.admin_session import AdminSession
from executor.proxmox.setup.certificate import read_fingerprint
from executor.proxmox.setup.existing import read_existing_access

pytestmark = pytest.mark.timeout(600)

#: How many questions a first run asks before it shows the planned changes. docs/install.md states this number.
QUESTIONS = 11


@dataclass
class World:
    """A FulcrumCore and a Proxmox in which nothing of ours exists, and the folder of the settings."""

    core: SimulatorThread
    proxmox: ProxmoxStandIn
    admin: AdminClient
    folder: Path

    @property
    def proxmox_address(self) -> str:
        return f"{self.proxmox.host}:{self.proxmox.port}"

    def environment(self, **variables: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(SETTING_PREFIXES)}
        return {**inherited, "COLUMNS": "200", "TERM": "dumb", **variables}

    def command(self, *options: str) -> list[str]:
        """Return a call of `smith init` that asks no question."""
        return [
            *(sys.executable, "-m", "executor", "init", "--yes", "--folder", str(self.folder)),
            *(
                "--proxmox",
                self.proxmox_address,
                "--fingerprint",
                read_fingerprint(self.proxmox.host, self.proxmox.port),
            ),
            *("--fulcrum-url", self.core.url, "--agent", "smith-dc1", "--provider", "Northwind", "--create-provider"),
            *("--unit", "none", *options),
        ]

    def logins(self) -> dict[str, str]:
        return {"PVE_ADMIN_PASSWORD": self.proxmox.root_password, "CORE_ADMIN_TOKEN": SEED_TOKEN}

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*options),
            env=self.environment(**self.logins()),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )

    def changes(self) -> list[str]:
        """Return the requests that have changed Proxmox or FulcrumCore since `clear_request_logs`, without logins."""
        at_proxmox = [request["path"] for request in self.proxmox.changing_requests()]
        at_core = [call["path"] for call in self.core.history() if call["method"] != "GET"]
        return [path for path in at_proxmox + at_core if path != "/access/ticket"]

    def clear_request_logs(self) -> None:
        self.proxmox.reset_request_log()
        self.core.clear_history()

    def token_comments(self, user: str) -> Mapping[str, str]:
        """Return the comments of the tokens of this user in Proxmox, by their names."""
        host, port = self.proxmox.host, self.proxmox.port
        session = AdminSession(host, port, "root@pam", read_fingerprint(host, port))
        session.log_in(self.proxmox.root_password, str)
        return read_existing_access(session, user).token_comments

    def files(self) -> dict[str, tuple[str, int]]:
        """Return content and mode of each file in the folder."""
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path): (path.read_text(), path.stat().st_mode & 0o777) for path in paths}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        core = stack.enter_context(running_simulator())
        proxmox = stack.enter_context(running_stand_in(has_user=False))
        admin = stack.enter_context(AdminClient(core.url))
        yield World(core, proxmox, admin, tmp_path / "agent-smith")


def test_a_newcomer_gets_the_first_vm_by_two_commands_and_eleven_answers(world: World, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "executor", "init", "--folder", str(world.folder)]
    program = TerminalProgram(command, env=world.environment(), cwd=tmp_path)
    answers = (
        ("Proxmox host", world.proxmox_address),
        ("Is this the certificate of your Proxmox?", "y"),
        ("Administrator of Proxmox", ""),
        ("Password of root@pam", world.proxmox.root_password),
        ("Use these settings?", "y"),
        ("FulcrumCore", world.core.url),
        ("administrator's token", SEED_TOKEN),
        ("Name of the agent", "smith-dc1"),
        ("Provider", "Northwind"),
        ("Create this participant?", "y"),
        ("How the agent is started", "none"),
    )
    assert len(answers) == QUESTIONS
    try:
        for question, text in answers:
            is_secret = text in (world.proxmox.root_password, SEED_TOKEN)
            (program.answer_hidden if is_secret else program.answer)(question, text)
        program.answer("Make these changes?", "y")
        program.expect("Start the agent with this command\n")
        assert program.end() == 0, program.shown
    finally:
        program.kill()
    assert world.proxmox.root_password not in program.shown
    assert SEED_TOKEN not in program.shown
    files = world.files()
    assert not any(world.proxmox.root_password in text or SEED_TOKEN in text for text, _mode in files.values())
    assert {mode for path, (_text, mode) in files.items() if "/secrets/" in path} == {0o600}
    _order_first_vm(world, program.shown.rsplit("Start the agent with this command\n", 1)[1].strip(), tmp_path)


def _order_first_vm(world: World, start_command: str, tmp_path: Path) -> None:
    """Start the agent by the shown command, order a service, and wait for its VM."""
    (tmp_path / "run").mkdir()
    settings = {
        "SMITH_HTTP_ADDR": "127.0.0.1:0",
        "FULCRUM_POLL_INTERVAL_S": "0.5",
        "SMITH_RUN_DIR": str(tmp_path / "run"),
    }
    with (tmp_path / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            ["/bin/sh", "-c", start_command],
            env=world.environment(**settings),
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        consumer = world.admin.create("participants", name="Acme", status="Enabled")["id"]
        (agent_row,) = world.admin.list_all("agents")
        (service_type,) = world.admin.list_all("service-types")
        service = world.admin.create_service(
            group_id=world.admin.create_group(consumer, "web"),
            service_type_id=service_type["id"],
            agent_id=agent_row["id"],
            name="web",
            properties={"cores": 1, "memoryMb": 1024, "diskGb": 10, "image": "debian-12"},
        )
        assert world.admin.wait_for_status(service["id"], "Stopped", timeout_s=180)["name"] == "web"
        (guest,) = [guest for guest in world.proxmox.guests() if not guest["template"]]
        assert guest["pool"] == "agent-smith"
    finally:
        os.killpg(agent.pid, signal.SIGTERM)
        agent.wait(120)


def test_neither_a_dry_run_nor_a_second_run_changes_anything(world: World) -> None:
    planned = world.run("--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert (world.changes(), world.folder.exists()) == ([], False)
    first = world.run()
    assert first.returncode == 0, first.stdout + first.stderr
    done = [line.removeprefix("  done: ") for line in first.stdout.splitlines() if line.startswith("  done: ")]
    assert [text for text in done if f"  {text}\n" not in planned.stdout] == []
    files = world.files()
    world.clear_request_logs()
    second = world.run()
    assert (second.returncode, world.changes(), world.files() == files) == (0, [], True)
    assert "nothing is changed" in second.stdout


def test_runs_that_are_each_killed_after_one_change_are_continued_by_the_next_run(world: World) -> None:
    killed = 0
    while _run_and_kill_at_first_change(world):
        killed += 1
        assert killed < 60
    assert killed >= 12, "a run has made several changes before it reported one"
    world.clear_request_logs()
    last = world.run()
    assert (last.returncode, world.changes()) == (0, []), last.stdout + last.stderr
    (agent,) = world.admin.list_all("agents")
    assert len([token for token in world.admin.list_all("tokens") if token.get("agentId") == agent["id"]]) == 1


def _run_and_kill_at_first_change(world: World) -> bool:
    """Run `smith init`, and kill it when it reports its first change. Return False if it ends without a change."""
    environment = world.environment(PYTHONUNBUFFERED="1", **world.logins())
    program = subprocess.Popen(
        world.command(), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    with program, program.stdout:
        for line in program.stdout:
            if line.startswith("  done: "):
                program.kill()
                return True
    assert program.returncode == 0
    return False


@pytest.mark.parametrize("place", ["Proxmox", "FulcrumCore"])
def test_a_token_whose_secret_was_not_stored_is_deleted_and_created_again(world: World, place: str) -> None:
    """The run ends after the token was created and before its secret was stored: killed, or without a response."""
    if place == "Proxmox":
        world.proxmox.control("hold", method="POST", path=r"/access/users/smith@pve/token/job")
    else:
        world.core.add_fault("drop_after", method="POST", path="/tokens$", times=1)
    program = subprocess.Popen(
        world.command(),
        env=world.environment(**world.logins()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if place == "Proxmox":
        wait_for(world.proxmox.is_holding, 400, "the token to be created")
        program.kill()
    assert program.wait(400) != 0
    world.proxmox.control("clear_faults")
    again = world.run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"delete token {'smith@pve!job' if place == 'Proxmox' else ''}" in again.stdout
    assert list(world.folder.rglob("*.pending")) == []


def test_a_stored_secret_is_used_only_if_it_is_the_secret_of_the_token(world: World) -> None:
    """A second run without options uses the user and the token of the first run.

    If the stored secret is wrong, the run is refused. If the record of an unfinished creation (`.pending`) exists, the
    run creates the token again.
    """
    options = ("--user", "ops@pve", "--token", "dc1")
    assert world.run(*options).returncode == 0
    world.clear_request_logs()
    again = world.run()
    assert (again.returncode, world.changes()) == (0, []), again.stdout + again.stderr
    secret = world.folder / "secrets" / "proxmox_token_secret"
    right = secret.read_text()
    secret.write_text("0f0e0d0c-0000-4000-8000-000000000000\n")
    refused = world.run()
    assert (refused.returncode, world.changes()) == (1, [])
    assert "ops@pve!dc1 exists in Proxmox, and its secret is not stored" in refused.stderr
    secret.write_text(right)
    comment = world.token_comments("ops@pve")["dc1"]
    secret.with_name("proxmox_token_secret.pending").write_text(json.dumps({"comment": comment}))
    created_again = world.run()
    assert created_again.returncode == 0, created_again.stdout + created_again.stderr
    assert "done: create token ops@pve!dc1" in created_again.stdout
    assert secret.read_text() != right


def test_a_token_of_another_installation_is_replaced_only_on_request(world: World, tmp_path: Path) -> None:
    assert world.run().returncode == 0
    world.folder = tmp_path / "other"
    world.clear_request_logs()
    refused = world.run()
    assert refused.returncode == 1
    assert "--replace-tokens" in refused.stderr
    assert world.changes() == []
    replaced = world.run("--replace-tokens")
    assert replaced.returncode == 0, replaced.stdout + replaced.stderr
