"""The units that `smith init` writes are accepted by the programs that read them, and start the agent."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from executor.cli.init_units import UnitKind, make_unit, require_paths_usable_in_unit
from executor.errors import SettingsError


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("no systemd-analyze on this machine")
    ((file, text),) = make_unit(UnitKind.SYSTEMD, tmp_path / "settings", tmp_path, has_ca_file=True).files.items()
    file.write_text(text)
    verified = subprocess.run([analyze, "verify", file], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")


def test_podmans_generator_accepts_the_quadlet(tmp_path: Path) -> None:
    generator = os.environ.get("QUADLET") or shutil.which("quadlet")
    if not generator:
        pytest.skip("no podman with quadlet (4.4 or newer) on this machine")
    for file, text in make_unit(UnitKind.QUADLET, tmp_path / "settings", tmp_path, has_ca_file=True).files.items():
        file.write_text(text)
    environment = {**os.environ, "QUADLET_UNIT_DIRS": str(tmp_path)}
    done = subprocess.run([generator, "--dryrun"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{tmp_path}/settings/secrets:/run/secrets:ro" in done.stdout


def test_docker_accepts_the_compose_file(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    version = [str(docker), "compose", "version"]
    if not docker or subprocess.run(version, capture_output=True, check=False).returncode:
        pytest.skip("no docker compose on this machine")
    for name in ("agent-smith.env", "proxmox-ca.pem", "secrets/fulcrum_api_token", "secrets/proxmox_token_secret"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ((file, text),) = make_unit(UnitKind.COMPOSE, tmp_path, None, has_ca_file=True).files.items()
    file.write_text(text)
    command = [docker, "compose", "--file", str(file), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_printed_command_is_one_that_a_shell_can_read(tmp_path: Path) -> None:
    for kind in UnitKind:
        command = make_unit(kind, tmp_path / "it's here", None, has_ca_file=True).start_command
        assert subprocess.run(["/bin/sh", "-n", "-c", command], capture_output=True, check=False).returncode == 0


def test_the_command_without_a_unit_starts_the_agent_with_the_settings(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    folder.mkdir()
    (folder / "agent-smith.env").write_text("SMITH_CLUSTER=dc1\n")
    program = tmp_path / "smith"
    program.write_text('#!/bin/sh\nprintf "%s %s" "$SMITH_CLUSTER" "$1"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    command = make_unit(UnitKind.NONE, folder, None, has_ca_file=False).start_command
    start, _, _end = command.rpartition("exec ")
    shown = subprocess.run(["/bin/sh", "-c", f"{start}exec {program} run)"], capture_output=True, text=True, check=True)
    assert shown.stdout == "dc1 run"


@pytest.mark.parametrize("kind", [UnitKind.SYSTEMD, UnitKind.QUADLET, UnitKind.COMPOSE])
@pytest.mark.parametrize("folder", ["/srv/my settings", "/srv/a:b", "/srv/100%", "/srv/$x", "/srv/a\nb"])
def test_a_folder_whose_path_a_unit_would_interpret_is_refused(kind: UnitKind, folder: str) -> None:
    with pytest.raises(SettingsError, match="a unit does not accept"):
        require_paths_usable_in_unit(kind, Path(folder))


@pytest.mark.parametrize("folder", ["/root/agent-smith", "/home/ops/agent-smith", "/var/tmp/x"])  # noqa: S108
def test_a_folder_that_systemd_hides_from_the_service_is_refused(folder: str) -> None:
    with pytest.raises(SettingsError, match="systemd hides"):
        require_paths_usable_in_unit(UnitKind.SYSTEMD, Path(folder))
    require_paths_usable_in_unit(UnitKind.QUADLET, Path(folder))
    require_paths_usable_in_unit(UnitKind.NONE, Path(folder))
