"""FulcrumCore's install command for our agent type: it fetches the settings and starts a container of our image."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from smith_lab.system import LAB_SETTINGS, LabSystem, outcome_of, run_lab_system
from support.install_command import settings_in, store_configuration

ROOT = Path(__file__).parents[2]
#: A program that replaces podman: it writes its arguments to a file.
FAKE_PODMAN = f"""#!{sys.executable}
import json, pathlib, sys
pathlib.Path("arguments.json").write_text(json.dumps(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    """A system whose agent has its whole configuration in FulcrumCore."""
    with run_lab_system(tmp_path_factory.mktemp("lab")) as system:
        store_configuration(system)
        yield system


def run_install_command(lab: LabSystem, folder: Path, agent_id: str) -> subprocess.CompletedProcess[str]:
    """Get the install command of an agent, and run it in the folder as an operator does."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "podman").write_text(FAKE_PODMAN)
    (programs / "podman").chmod(0o755)
    answer = lab.admin.call("POST", f"/agents/{agent_id}/install-command")
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder)}
    command = ["sh", "-c", answer["installCommand"]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60)


def image_settings() -> dict[str, str]:
    """Return the settings in the image's environment, from the Containerfile."""
    lines = (ROOT / "Containerfile").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("ENV ") and "SMITH_DATA_DIR" in line]
    return dict(word.split("=", 1) for word in shlex.split(line)[1:] if word.startswith("SMITH_"))


def test_the_install_command_starts_an_executor_that_processes_jobs(lab: LabSystem, tmp_path: Path) -> None:
    """The executor gets only the settings of the image, of the fetched file, and a data folder and port of the test."""
    done = run_install_command(lab, tmp_path, lab.ids.agent_id)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "agent-smith.env"
    assert file.stat().st_mode & 0o777 == 0o600
    fetched = settings_in(file.read_text())
    assert fetched == {
        "FULCRUM_API_URL": lab.core.url,
        "FULCRUM_API_TOKEN": lab.ids.agent_token,
        "SMITH_REMOTE_CONFIG": "true",
    }

    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PROXMOX_", "SMITH_"))}
    (tmp_path / "data").mkdir()
    settings_of_the_test = {
        "SMITH_DATA_DIR": str(tmp_path / "data"),
        "SMITH_HTTP_ADDR": LAB_SETTINGS["SMITH_HTTP_ADDR"],
    }
    executor = subprocess.Popen(
        [sys.executable, "-m", "executor", "run"],
        cwd=tmp_path,
        env=inherited | image_settings() | fetched | settings_of_the_test,
        stdout=subprocess.DEVNULL,
    )
    try:
        service_id = lab.order_service("web")
        assert lab.wait_for_jobs(service_id)["status"] == "Stopped"
        assert outcome_of(lab.run_action(service_id, "start")) == "Completed"
        assert outcome_of(lab.run_action(service_id, "delete")) == "Completed"
    finally:
        executor.terminate()
        executor.wait(120)


def test_the_install_command_runs_the_image_with_the_documented_options(lab: LabSystem, tmp_path: Path) -> None:
    lab.admin.call("DELETE", f"/agents/{lab.ids.agent_id}/install-command")
    done = run_install_command(lab, tmp_path, lab.ids.agent_id)
    assert done.returncode == 0, done.stderr
    arguments = json.loads((tmp_path / "arguments.json").read_text())
    documented = (ROOT / "docs" / "install.md").read_text().split("podman run --detach", 1)[1].split("```", 1)[0]
    words = shlex.split(documented.replace("\\\n", " ").splitlines()[0])
    allowed_to_be_missing = {"./secrets:/run/secrets:ro"}  # the fetched file contains the only secret
    missing = set(words) - set(arguments) - allowed_to_be_missing
    assert missing == set()
    assert arguments[:2] == ["run", "--detach"]
    assert arguments[arguments.index("--user") + 1] == "10001:10001"
    assert "agent-smith:/data" in arguments
    assert "USER 10001:10001\n" in (ROOT / "Containerfile").read_text()


def test_without_a_token_in_the_configuration_the_install_command_names_the_remedy(
    lab: LabSystem, tmp_path: Path
) -> None:
    agent: dict[str, Any] = lab.admin.create(
        "agents",
        name="without-token",
        providerId=lab.ids.provider_id,
        agentTypeId=lab.ids.agent_type_id,
        tags=["proxmox"],
        configuration={
            "fulcrumApiUrl": lab.core.url,
            "apiHost": "pve.test",
            "apiUser": "smith@pve",
            "apiTokenId": "job",
            "apiTokenSecret": "not-a-real-secret",
            "nodes": ["pve1"],
            "storage": "local-lvm",
        },
    )
    done = run_install_command(lab, tmp_path, agent["id"])
    assert done.returncode != 0
    assert "set it, and repeat this command" in done.stderr
    assert not (tmp_path / "arguments.json").exists()


def test_the_lab_uses_every_shipped_service_type_and_agent_type(lab: LabSystem) -> None:
    """The tests of actions run with the types that the lab creates from the files in deploy/."""
    shipped = {json.loads(file.read_text())["name"] for file in (ROOT / "deploy").glob("*-type-*.json")}
    lab_types = lab.admin.list_all("service-types") + lab.admin.list_all("agent-types")
    assert shipped == {kind["name"] for kind in lab_types}
