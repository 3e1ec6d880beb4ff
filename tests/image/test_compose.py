"""deploy/compose.yaml as it is, by podman-compose: the service of an installation, and that of the lab."""

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
from containers import IMAGE, MODE, START_LIMIT_S, USER_ID, Podman, events, prepare_site, wait_until_healthy
from smith_lab.system import wait_for
from test_image_at_work import NOBODY

PROJECT = Path(__file__).resolve().parents[2]
COMPOSE = Path(os.environ.get("IMAGE_TOOLS", "")) / "podman-compose"
LIMIT_S = 120

pytestmark = pytest.mark.skipif(MODE != "podman" or not COMPOSE.is_file(), reason="needs podman and podman-compose")


@contextmanager
def composed(folder: Path, service: str, *, lab: bool = False, **changes: Any) -> Iterator[Podman]:
    """Start one service of the file, in the network where this runs; yield its container."""
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
    container = Podman(site=prepare_site(folder / "unused", NOBODY), name=f"agent-smith_{service}_1")
    try:
        yield container
    finally:
        compose("down", "--volumes")
        container.remove()


def test_the_service_runs_as_safely_as_the_file_says_and_stops_in_order(tmp_path: Path) -> None:
    site = prepare_site(tmp_path / "site", NOBODY)
    site.secrets.rename(tmp_path / "secrets")
    (tmp_path / "agent-smith.env").write_text("".join(f"{name}={text}\n" for name, text in site.environment.items()))
    with composed(tmp_path, "agent-smith") as container:
        wait_for(lambda: events(container, "agent_ready"), START_LIMIT_S, f"it to work: {container.logs()[-2000:]}")
        facts = container.inspect()
        host = facts["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert not facts["EffectiveCaps"]
        assert (host["Memory"], host["PidsLimit"]) == (1536 * 1024 * 1024, 512)  # podman-compose drops memswap_limit
        assert facts["Config"]["User"] == f"{USER_ID}:{USER_ID}"
        assert not [entry for entry in facts["Config"]["Env"] if "TOKEN=" in entry or "SECRET=" in entry]
        assert container.execute("cat", "/run/secrets/fulcrum_api_token").stdout == NOBODY["FULCRUM_API_TOKEN"]
        assert container.stop() == 0


def test_the_labs_service_finds_all_that_smith_lab_leaves_for_it(tmp_path: Path) -> None:
    """`smith lab` as the lab's container starts it, and the service with the file's own settings: doctor says ok."""
    place = tmp_path / "place"
    command = yaml.safe_load((PROJECT / "deploy" / "compose.yaml").read_text())["services"]["lab"]
    containerfile = (PROJECT / command["build"]["dockerfile"]).read_text()
    arguments = yaml.safe_load(containerfile.rpartition("CMD ")[2])
    arguments = [str(place) if argument == "/lab" else argument for argument in arguments[1:]]
    lab = subprocess.Popen([sys.executable, "-m", "executor", *arguments], stdout=subprocess.DEVNULL)
    try:
        wait_for((place / "lab.env").exists, START_LIMIT_S, "the lab")
        for path in (place, *place.rglob("*")):
            os.chown(path, USER_ID, USER_ID)  # as whom the lab's container runs
        volumes = [f"{place}:/lab:ro", "lab-data:/data"]
        with composed(tmp_path, "agent-smith-in-lab", lab=True, volumes=volumes) as container:
            wait_until_healthy(container)
            done = container.execute("smith", "doctor")
            assert done.returncode == 0, done.stdout
    finally:
        lab.send_signal(signal.SIGTERM)
        lab.wait(LIMIT_S)
