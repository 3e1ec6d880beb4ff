"""What docs/install.md tells people to type at FulcrumCore, typed at its simulator."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from executor.lab.fulcrum_setup import METRIC_TYPES, SEED_TOKEN, AdminClient
from executor.lab.simulator_control import RunningSimulator, running_simulator

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def core() -> Iterator[RunningSimulator]:
    with running_simulator() as simulator:
        yield simulator


def _block(name: str) -> str:
    """Return the page's shell lines that begin with `# install:<name>`."""
    page = (PROJECT / "docs" / "install.md").read_text(encoding="utf-8")
    found = re.search(rf"```sh\n# install:{name}\n(.*?)```", page, re.DOTALL)
    assert found
    return found[1]


def _type(lines: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "admin-token").write_text(SEED_TOKEN)
    environment = {"PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}", "HOME": os.environ["HOME"]}
    return subprocess.run(
        [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", lines],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_lines_for_fulcrumcore_make_an_agent_that_can_log_in(core: RunningSimulator, tmp_path: Path) -> None:
    done = _type(_block("core").replace("https://core.example.net", core.url), tmp_path)
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
