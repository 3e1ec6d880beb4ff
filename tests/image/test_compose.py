"""deploy/compose.yaml, run by podman-compose: the service of an installation, and the service of the lab."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from containers import IMAGE, MODE, START_TIMEOUT_S, USER_ID, Podman, log_events, prepare_site, wait_until_healthy
from smith_lab.system import wait_for
from test_image_at_work import UNREACHABLE

PROJECT = Path(__file__).resolve().parents[2]
COMPOSE = Path(os.environ.get("IMAGE_TOOLS", "")) / "podman-compose"
LIMIT_S = 120

pytestmark = pytest.mark.skipif(MODE != "podman" or not COMPOSE.is_file(), reason="needs podman and podman-compose")


@contextmanager
def running_compose_service(folder: Path, service: str, *, lab: bool = False, **changes: Any) -> Iterator[Podman]:
    """Start one service of deploy/compose.yaml in the network namespace of the test; yield its container."""
    shutil.copy(PROJECT / "deploy" / "compose.yaml", folder)
    override = {"services": {service: {"network_mode": "host", **changes}}}
    (folder / "override.yaml").write_text(yaml.safe_dump(override))

    def compose(*arguments: str) -> subprocess.CompletedProcess[str]:
        files = ["-f", "compose.yaml", "-f", "override.yaml", *(["--profile", "lab"] if lab else [])]
        environment = {**os.environ, "AGENT_SMITH_IMAGE": IMAGE}
        return subprocess.run(
            [COMPOSE, "--in-pod", "false", *files, *arguments],
            env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=LIMIT_S,
        )  # fmt: skip

    done = compose("up", "--detach", "--no-deps", service)
    assert done.returncode == 0, done.stdout + done.stderr
    container = Podman(site=prepare_site(folder / "unused", UNREACHABLE), name=f"agent-smith_{service}_1")
    try:
        yield container
    finally:
        compose("down", "--volumes")
        container.remove()


def test_the_service_runs_with_the_restrictions_of_the_file_and_drains_when_stopped(tmp_path: Path) -> None:
    site = prepare_site(tmp_path / "site", UNREACHABLE)
    site.secrets.rename(tmp_path / "secrets")
    (tmp_path / "agent-smith.env").write_text("".join(f"{name}={text}\n" for name, text in site.environment.items()))
    with running_compose_service(tmp_path, "agent-smith") as container:
        wait_for(
            lambda: log_events(container, "agent_ready"), START_TIMEOUT_S, f"agent_ready: {container.logs()[-2000:]}"
        )
        facts = container.inspect()
        host = facts["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert not facts["EffectiveCaps"]
        assert (host["Memory"], host["PidsLimit"]) == (1536 * 1024 * 1024, 512)  # podman-compose drops memswap_limit
        assert facts["Config"]["User"] == f"{USER_ID}:{USER_ID}"
        assert not [entry for entry in facts["Config"]["Env"] if "TOKEN=" in entry or "SECRET=" in entry]
        assert container.execute("cat", "/run/secrets/fulcrum_api_token").stdout == UNREACHABLE["FULCRUM_API_TOKEN"]
        assert container.stop() == 0


def test_the_service_of_the_lab_works_with_the_files_of_smith_lab(tmp_path: Path) -> None:
    """With `smith lab` started as in the lab's container, `smith doctor` succeeds in the service agent-smith-in-lab."""
    lab_folder = tmp_path / "lab-folder"
    command = yaml.safe_load((PROJECT / "deploy" / "compose.yaml").read_text())["services"]["lab"]
    containerfile = (PROJECT / command["build"]["dockerfile"]).read_text()
    arguments = yaml.safe_load(containerfile.rpartition("CMD ")[2])
    arguments = [str(lab_folder) if argument == "/lab" else argument for argument in arguments[1:]]
    lab = subprocess.Popen([sys.executable, "-m", "executor", *arguments], stdout=subprocess.DEVNULL)
    try:
        wait_for((lab_folder / "lab.env").exists, START_TIMEOUT_S, "the lab")
        for path in (lab_folder, *lab_folder.rglob("*")):
            os.chown(path, USER_ID, USER_ID)  # the user of the lab's container
        volumes = [f"{lab_folder}:/lab:ro", "lab-data:/data"]
        with running_compose_service(tmp_path, "agent-smith-in-lab", lab=True, volumes=volumes) as container:
            wait_until_healthy(container)
            done = container.execute("smith", "doctor")
            assert done.returncode == 0, done.stdout
    finally:
        lab.send_signal(signal.SIGTERM)
        lab.wait(LIMIT_S)
