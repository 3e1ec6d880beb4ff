"""The files of deploy/ are hardened, consistent and up to date. These tests need neither root nor a network."""

from __future__ import annotations

import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from support.deploy_files import DEPLOY, PROJECT, drain_s

from executor import errors
from executor.cli.run import STALL_TIMEOUT_S
from executor.settings.settings import FIELDS, SECRET_SETTING_NAMES
from executor.settings.sources import MAX_SECRET_BYTES, PREFIXES, gather_values

#: After these exit codes a restart does not help.
FINAL_CODES = {str(code) for code in (errors.EXIT_USAGE, errors.EXIT_SETTINGS, errors.EXIT_DATABASE)}
SECRET_FILES = {"fulcrum_api_token", "proxmox_token_secret"}
USER = "10001:10001"
#: The user of PostgreSQL in its image.
POSTGRES_USER = "999:999"
#: The services of the profile `nodes` of the compose file: agents that share a PostgreSQL database.
NODES = ["node-1", "node-2", "node-3"]
TMP_OPTIONS = {"rw", "nosuid", "nodev", "noexec"}


def _seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def _read_unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """Read a unit file: section, key, and the key's values in order."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, sign, value = line.partition("=")
            assert sign, line
            section.setdefault(key, []).append(value)
    return sections


# --- quadlet ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quadlet() -> dict[str, dict[str, list[str]]]:
    return _read_unit(DEPLOY / "quadlet" / "agent-smith.container")


#: The keys of podman 4.6 (podman-systemd.unit(5)) that the file uses. The generator refuses unknown keys.
QUADLET_KEYS = {
    "Image", "ContainerName", "EnvironmentFile", "Secret", "Volume", "User", "ReadOnly", "Tmpfs", "DropCapability",
    "NoNewPrivileges", "PidsLimit", "PodmanArgs", "Notify", "HealthCmd", "HealthInterval", "HealthTimeout",
    "HealthRetries", "HealthStartPeriod", "HealthOnFailure",
}  # fmt: skip


def test_the_quadlet_has_only_keys_of_podman_4_6(quadlet: dict[str, dict[str, list[str]]]) -> None:
    assert set(quadlet) == {"Unit", "Container", "Service", "Install"}
    assert set(quadlet["Container"]) <= QUADLET_KEYS
    assert set(_read_unit(DEPLOY / "quadlet" / "agent-smith.volume")["Volume"]) == {"VolumeName"}


def test_the_quadlet_is_hardened(quadlet: dict[str, dict[str, list[str]]]) -> None:
    container = quadlet["Container"]
    assert container["User"] == [USER]
    assert container["ReadOnly"] == container["NoNewPrivileges"] == container["Notify"] == ["true"]
    assert container["DropCapability"] == ["all"]
    assert int(container["PidsLimit"][0]) <= 1024
    assert "--memory=" in container["PodmanArgs"][0]
    assert {secret.split(",")[0] for secret in container["Secret"]} == SECRET_FILES
    assert all("uid=10001" in secret and "mode=0400" in secret for secret in container["Secret"])
    mount_point, _, options = container["Tmpfs"][0].partition(":")
    assert mount_point == "/tmp"  # noqa: S108  (in the container)
    assert set(options.split(",")) >= TMP_OPTIONS
    assert not any("--privileged" in text or "--cap-add" in text for text in container["PodmanArgs"])


def test_the_quadlet_waits_for_the_drain(quadlet: dict[str, dict[str, list[str]]]) -> None:
    found = re.search(r"--stop-timeout=(\d+)", quadlet["Container"]["PodmanArgs"][0])
    assert found
    assert drain_s() < int(found[1]) < _seconds(quadlet["Service"]["TimeoutStopSec"][0])
    assert set(quadlet["Service"]["RestartPreventExitStatus"][0].split()) == FINAL_CODES


def test_podmans_generator_makes_a_hardened_unit_from_the_quadlet(tmp_path: Path) -> None:
    """`make image-test` sets QUADLET to a generator, for machines with an old podman."""
    generator = os.environ.get("QUADLET") or shutil.which("quadlet")
    generator = generator or next(Path("/usr").glob("lib*/systemd/system-generators/podman-system-generator"), None)
    if not generator:
        pytest.skip("no podman with quadlet (4.4 or newer) on this machine")
    environment = {**os.environ, "QUADLET_UNIT_DIRS": str(DEPLOY / "quadlet")}
    done = subprocess.run([generator, "--dryrun"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    units = dict(re.findall(r"^---(\S+)---\n(.*?)(?=^---|\Z)", done.stdout, re.MULTILINE | re.DOTALL))
    assert set(units) == {"agent-smith.service", "agent-smith-volume.service"}
    command = shlex.split(re.search(r"^ExecStart=(.*)$", units["agent-smith.service"], re.MULTILINE)[1])  # type: ignore[index]
    assert {"--read-only", "--security-opt=no-new-privileges", "--sdnotify=container", "--memory=1536m"} <= set(command)
    pairs = set(itertools.pairwise(command))
    assert {("--cap-drop", "all"), ("--user", USER), ("--pids-limit", "512")} <= pairs
    assert "--stop-timeout=380" in command
    if (analyze := shutil.which("systemd-analyze")) and shutil.which("podman"):
        for name, text in units.items():
            (tmp_path / name).write_text(text)
        files = [str(tmp_path / name) for name in units]
        verified = subprocess.run([analyze, "verify", *files], capture_output=True, text=True, check=False)
        assert (verified.returncode, verified.stderr) == (0, "")


# --- compose ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


@pytest.mark.parametrize("name", ["agent-smith", *NODES, "postgres", "lab", "agent-smith-in-lab"])
def test_the_compose_file_is_hardened(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["user"] == (POSTGRES_USER if name == "postgres" else USER)
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] == service["memswap_limit"]
    assert 0 < service["pids_limit"] <= 1024
    assert not {"privileged", "cap_add", "ports", "pid"} & set(service)


def test_the_compose_file_takes_secrets_from_files_and_starts_the_lab_only_when_asked(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services["agent-smith"]["secrets"]) == SECRET_FILES
    assert set(compose["secrets"]) == SECRET_FILES | {"smith_database_url", "postgres_password"}
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())
    assert not {"network_mode", "environment"} & set(services["agent-smith"])
    profiles = {name: service.get("profiles") for name, service in services.items()}
    assert {name for name, of_service in profiles.items() if of_service is None} == {"agent-smith"}
    assert {name for name, of_service in profiles.items() if of_service == ["nodes"]} == {*NODES, "postgres"}
    settings = services["agent-smith-in-lab"]["environment"]
    assert set(settings) <= set(FIELDS) - set(SECRET_SETTING_NAMES) | {"SMITH_SECRETS_DIR"}
    assert services["agent-smith-in-lab"]["network_mode"] == "service:lab"


def test_the_compose_file_waits_for_the_drain_and_keeps_the_data(compose: dict[str, Any]) -> None:
    service = compose["services"]["agent-smith"]
    assert _seconds(service["stop_grace_period"]) > drain_s()
    assert "data:/data" in service["volumes"]
    assert "data" in compose["volumes"]


def test_the_nodes_of_the_compose_file_differ_only_in_their_name_and_their_data(compose: dict[str, Any]) -> None:
    nodes = [compose["services"][name] for name in NODES]
    assert [node["hostname"] for node in nodes] == NODES, "a restarted agent finds its jobs by its host name"
    assert [node["volumes"] for node in nodes] == [[f"{name}:/data"] for name in NODES]
    assert {*NODES, "postgres"} <= set(compose["volumes"])
    common = [{key: value for key, value in node.items() if key not in ("hostname", "volumes")} for node in nodes]
    assert common[0] == common[1] == common[2]
    assert set(common[0]["secrets"]) == SECRET_FILES | {"smith_database_url"}
    assert _seconds(common[0]["stop_grace_period"]) > drain_s()
    assert "smith_database_url" in {name.lower() for name in SECRET_SETTING_NAMES}


def test_the_composed_postgresql_has_a_digest_a_secret_file_and_no_other_network(compose: dict[str, Any]) -> None:
    postgres = compose["services"]["postgres"]
    assert re.fullmatch(r"postgres:[0-9]+-[a-z]+@sha256:[0-9a-f]{64}", postgres["image"])
    assert postgres["secrets"] == ["postgres_password"]
    settings = postgres["environment"]
    assert settings["POSTGRES_PASSWORD_FILE"] == "/run/secrets/postgres_password"
    assert "POSTGRES_PASSWORD" not in settings
    assert postgres["networks"] == ["database"]
    assert compose["networks"]["database"] == {"internal": True}
    assert all("database" in compose["services"][name]["networks"] for name in NODES)
    mounts = {text.partition(":")[0]: set(text.partition(":")[2].split(",")) for text in postgres["tmpfs"]}
    assert set(mounts) == {"/tmp", "/var/run/postgresql"}  # noqa: S108  (in the container)
    assert all(options >= TMP_OPTIONS for options in mounts.values())


# --- podman command in the manual -------------------------------------------------------------------------------------


def test_the_documented_podman_command_is_as_hardened_as_the_quadlet(quadlet: dict[str, dict[str, list[str]]]) -> None:
    page = (PROJECT / "docs" / "install.md").read_text(encoding="utf-8")
    found = re.search(r"^podman run --detach(.*?[^\\])$", page, re.DOTALL | re.MULTILINE)
    assert found
    container = quadlet["Container"]
    required_options = {
        "--read-only",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        f"--tmpfs {container['Tmpfs'][0]}",
    }
    required_options |= {*container["PodmanArgs"][0].split(), f"--pids-limit={container['PidsLimit'][0]}"}
    assert not {option for option in required_options if option not in found[1]}
    assert "TOKEN=" not in found[1], "every user of the machine can read a command line"


# --- systemd ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def service() -> dict[str, list[str]]:
    return _read_unit(DEPLOY / "systemd" / "agent-smith.service")["Service"]


def test_the_unit_is_hardened(service: dict[str, list[str]]) -> None:
    restrictions = (
        "DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices", "ProtectKernelTunables",
        "ProtectKernelModules", "ProtectControlGroups", "RestrictSUIDSGID", "RestrictNamespaces", "LockPersonality",
    )  # fmt: skip
    assert {key: service[key] for key in restrictions} == {key: ["yes"] for key in restrictions}
    assert service["ProtectSystem"] == ["strict"]
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == [""]
    assert service["MemoryMax"]
    assert {credential.split(":")[0] for credential in service["LoadCredential"]} == SECRET_FILES
    assert any("SMITH_SECRETS_DIR=%d" in line for line in service["Environment"])


def test_the_unit_waits_for_the_drain_and_does_not_restart_after_final_errors(service: dict[str, list[str]]) -> None:
    assert _seconds(service["TimeoutStopSec"][0]) > drain_s()
    assert set(service["RestartPreventExitStatus"][0].split()) == FINAL_CODES
    assert service["KillMode"] == ["mixed"], "TERM for every process would end running playbooks"
    assert _seconds(service["WatchdogSec"][0]) >= STALL_TIMEOUT_S, "the supervisor must restart a stalled agent first"


def test_systemd_accepts_the_unit_and_rates_it_as_restricted(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("no systemd-analyze on this machine")
    program = tmp_path / "smith"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "agent-smith.service"
    text = (DEPLOY / "systemd" / "agent-smith.service").read_text()
    unit.write_text(text.replace("/opt/agent-smith/bin/smith", str(program)))
    verified = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    threshold = [analyze, "security", "--offline=true", "--threshold=20", unit]
    rating = subprocess.run(threshold, capture_output=True, text=True, check=False)
    assert rating.returncode == 0, rating.stdout


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_example_of_the_settings_is_current() -> None:
    generator = runpy.run_path(str(DEPLOY / "generate_env_example.py"))
    shown = (DEPLOY / "agent-smith.env.example").read_text()
    assert shown == generator["example_text"](), "run deploy/generate_env_example.py"


def test_the_example_of_the_settings_has_every_setting_and_no_secret() -> None:
    lines = (DEPLOY / "agent-smith.env.example").read_text().splitlines()
    assert max(map(len, lines)) < MAX_SECRET_BYTES
    names = {found[1] for line in lines if (found := re.match(r"#?([A-Z_]+)=", line))}
    assert names == {f"{name}_FILE" if name in SECRET_SETTING_NAMES else name for name in FIELDS}
    active = dict(line.split("=", 1) for line in lines if line.startswith(PREFIXES))
    assert not {name for name in active if name.removesuffix("_FILE") in SECRET_SETTING_NAMES}
    assert not gather_values(names=FIELDS, secret_names=SECRET_SETTING_NAMES, environ=active, env_file=None).problems


# --- the image's requirements -----------------------------------------------------------------------------------------


def _pins(path: Path) -> Iterator[Requirement]:
    for line in path.read_text().replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            yield Requirement(re.sub(r"\s+--hash=\S+", "", line).strip())


@pytest.mark.parametrize("name", ["requirements.txt", "collections.txt", "build-requirements.txt"])
def test_the_images_requirements_have_hashes_and_the_versions_of_the_constraints(name: str) -> None:
    python = {"python_full_version": "3.13.5", "python_version": "3.13"}
    version_in_constraints = {
        pin.name: str(pin.specifier)
        for pin in _pins(PROJECT / "constraints.txt")
        if not pin.marker or pin.marker.evaluate(python)
    }
    text = (DEPLOY / "image" / name).read_text()
    pins = list(_pins(DEPLOY / "image" / name))
    assert pins
    stale = {pin.name for pin in pins if version_in_constraints.get(pin.name) != str(pin.specifier)}
    assert not stale, "run make constraints"
    assert len(re.findall(r"^[a-z][^ ]+==[^ ]+ \\\n +--hash=sha256:", text, re.MULTILINE)) == len(pins)
