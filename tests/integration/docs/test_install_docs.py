"""The shell commands of docs/install.md, run with the FulcrumCore simulator and in a new virtual environment."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from smith_lab.fulcrum_setup import METRIC_TYPES, SEED_TOKEN, AdminClient
from smith_lab.simulator.control import SimulatorThread, running_simulator

PROJECT = Path(__file__).resolve().parents[3]
#: The time limit of a block of commands. One of them installs packages from the package index.
COMMANDS_LIMIT_S = 280


@pytest.fixture
def core() -> Iterator[SimulatorThread]:
    with running_simulator() as simulator:
        yield simulator


def _block(name: str) -> str:
    """Return the shell commands of the block of the page whose first line is `# install:<name>`."""
    page = (PROJECT / "docs" / "install.md").read_text(encoding="utf-8")
    found = re.search(rf"```sh\n# install:{name}\n(.*?)```", page, re.DOTALL)
    assert found
    return found[1]


def _run_lines(lines: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}", "HOME": os.environ["HOME"]}
    return subprocess.run(
        [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", lines],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMANDS_LIMIT_S,
    )


def test_the_commands_for_fulcrumcore_create_an_agent_that_can_log_in(core: SimulatorThread, tmp_path: Path) -> None:
    (tmp_path / "admin-token").write_text(SEED_TOKEN)
    done = _run_lines(_block("core").replace("https://core.example.net", core.url), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    file = tmp_path / "fulcrum_api_token"
    assert file.stat().st_mode & 0o777 == 0o600
    token = file.read_text().strip()
    assert token not in done.stdout
    me = requests.get(f"{core.url}/api/v1/agents/me", headers={"Authorization": f"Bearer {token}"}, timeout=10).json()
    with AdminClient(core.url) as admin:
        (agent_type,) = admin.list_all("agent-types")
        (service_type,) = admin.list_all("service-types")
        assert me["agentTypeId"] == agent_type["id"]
        assert agent_type["serviceTypeIds"] == [service_type["id"]]
        assert {metric["name"] for metric in admin.list_all("metric-types")} == set(METRIC_TYPES)


def test_the_commands_for_a_virtual_environment_create_one_that_works_outside_the_checkout(tmp_path: Path) -> None:
    """Only committed files are installed, as an operator has them. The installation must not need the checkout."""
    source, elsewhere, venv = tmp_path / "source", tmp_path / "elsewhere", tmp_path / "agent-smith"
    listed = subprocess.run(
        [shutil.which("git") or "git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (PROJECT / name).exists():  # git also lists a file that was removed without a commit
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, source / name, follow_symlinks=False)
    done = _run_lines(_block("venv").replace("/opt/agent-smith", str(venv)), source)
    assert done.returncode == 0, done.stderr
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line)
    assert "not found" not in facts.values()
    assert facts["community-proxmox"]

    shutil.rmtree(source)
    elsewhere.mkdir()

    def smith(*arguments: str) -> subprocess.CompletedProcess[str]:
        return _run_lines(shlex.join([str(venv / "bin" / "smith"), *arguments]), elsewhere)

    settings = json.loads(smith("config", "show", "--json").stdout)
    assert settings
    actions = json.loads(smith("actions", "list", "--json").stdout)
    assert {"create", "delete"} <= {action["name"] for action in actions}
    assert all(Path(action["playbook"]).is_relative_to(venv) for action in actions)
    assert smith("play", "--help").returncode == 0
    for arguments, code, expected_text in (
        (("doctor",), 3, "FULCRUM_API_URL is missing"),
        (("run",), 3, "FULCRUM_API_URL is missing"),
        (("demo",), 1, "pip install agent-smith-lab"),
    ):
        done = smith(*arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert expected_text in done.stdout + done.stderr
