"""The files of deploy/ are hardened, consistent and up to date. These tests need neither root nor a network."""

from __future__ import annotations

import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from executor import errors
from executor.cli.run import STALL_TIMEOUT_S, STOP_MARGIN_S
from executor.proxmox.privileges import needs
from executor.settings.settings import FIELDS, SECRETS, Settings
from executor.settings.sources import MAX_SECRET_BYTES, PREFIXES, gather

PROJECT = Path(__file__).resolve().parents[2]
DEPLOY = PROJECT / "deploy"
#: After these exit codes a restart does not help.
FINAL_CODES = {str(code) for code in (errors.EXIT_USAGE, errors.EXIT_SETTINGS, errors.EXIT_DATABASE)}
SECRET_FILES = {"fulcrum_api_token", "proxmox_token_secret"}
USER = "10001:10001"
TMP_OPTIONS = {"rw", "nosuid", "nodev", "noexec"}


def _drain_s() -> float:
    """Return how long a stop may take: the default drain time and the margin after it."""
    return float(FIELDS["SMITH_DRAIN_TIMEOUT_S"].default) + STOP_MARGIN_S


def _seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def _unit(path: Path) -> dict[str, dict[str, list[str]]]:
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
    return _unit(DEPLOY / "quadlet" / "agent-smith.container")


#: The keys of podman 4.6 (podman-systemd.unit(5)) that the file uses. The generator refuses unknown keys.
QUADLET_KEYS = {
    "Image", "ContainerName", "EnvironmentFile", "Secret", "Volume", "User", "ReadOnly", "Tmpfs", "DropCapability",
    "NoNewPrivileges", "PidsLimit", "PodmanArgs", "Notify", "HealthCmd", "HealthInterval", "HealthTimeout",
    "HealthRetries", "HealthStartPeriod", "HealthOnFailure",
}  # fmt: skip


def test_the_quadlet_has_only_keys_of_podman_4_6(quadlet: dict[str, dict[str, list[str]]]) -> None:
    assert set(quadlet) == {"Unit", "Container", "Service", "Install"}
    assert set(quadlet["Container"]) <= QUADLET_KEYS
    assert set(_unit(DEPLOY / "quadlet" / "agent-smith.volume")["Volume"]) == {"VolumeName"}


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
    assert _drain_s() < int(found[1]) < _seconds(quadlet["Service"]["TimeoutStopSec"][0])
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


@pytest.mark.parametrize("name", ["agent-smith", "lab", "agent-smith-in-lab"])
def test_the_compose_file_is_hardened(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["user"] == USER
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] == service["memswap_limit"]
    assert 0 < service["pids_limit"] <= 1024
    assert not {"privileged", "cap_add", "ports", "pid"} & set(service)


def test_the_compose_file_takes_secrets_from_files_and_starts_the_lab_only_when_asked(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services["agent-smith"]["secrets"]) == set(compose["secrets"]) == SECRET_FILES
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())
    assert not {"network_mode", "environment"} & set(services["agent-smith"])
    assert {name for name, service in services.items() if service.get("profiles") != ["lab"]} == {"agent-smith"}
    settings = services["agent-smith-in-lab"]["environment"]
    assert set(settings) <= set(FIELDS) - set(SECRETS) | {"SMITH_SECRETS_DIR"}
    assert services["agent-smith-in-lab"]["network_mode"] == "service:lab"


def test_the_compose_file_waits_for_the_drain_and_keeps_the_data(compose: dict[str, Any]) -> None:
    service = compose["services"]["agent-smith"]
    assert _seconds(service["stop_grace_period"]) > _drain_s()
    assert "data:/data" in service["volumes"]
    assert "data" in compose["volumes"]


# --- podman command in the manual -------------------------------------------------------------------------------------


def test_the_documented_podman_command_is_as_hardened_as_the_quadlet(quadlet: dict[str, dict[str, list[str]]]) -> None:
    page = (PROJECT / "docs" / "install.md").read_text(encoding="utf-8")
    found = re.search(r"^podman run --detach(.*?[^\\])$", page, re.DOTALL | re.MULTILINE)
    assert found
    container = quadlet["Container"]
    wanted = {"--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", f"--tmpfs {container['Tmpfs'][0]}"}
    wanted |= {*container["PodmanArgs"][0].split(), f"--pids-limit={container['PidsLimit'][0]}"}
    assert not {option for option in wanted if option not in found[1]}
    assert "TOKEN=" not in found[1], "every user of the machine can read a command line"


# --- systemd ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def service() -> dict[str, list[str]]:
    return _unit(DEPLOY / "systemd" / "agent-smith.service")["Service"]


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
    assert _seconds(service["TimeoutStopSec"][0]) > _drain_s()
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
    exposed = subprocess.run(threshold, capture_output=True, text=True, check=False)
    assert exposed.returncode == 0, exposed.stdout


# --- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def manifests() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "agent-smith.yaml").read_text())
    return {document["kind"]: document for document in documents}


def test_the_manifest_is_hardened(manifests: dict[str, dict[str, Any]]) -> None:
    labels = manifests["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001}.items()
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/run/secrets"]["readOnly"] is True
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert "Secret" not in manifests, "a secret must not be in a file of the repository"
    assert "env" not in container


def test_the_manifest_waits_for_the_drain_and_runs_one_replica(
    manifests: dict[str, dict[str, Any]],
) -> None:
    deployment = manifests["Deployment"]["spec"]
    assert deployment["template"]["spec"]["terminationGracePeriodSeconds"] > _drain_s()
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}


def test_the_liveness_probe_checks_the_agent_only(manifests: dict[str, dict[str, Any]]) -> None:
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["exec"]["command"][-1] == "--live"
    assert container["startupProbe"]["exec"]["command"][-1] == "--live"
    assert container["readinessProbe"]["exec"]["command"][-1] != "--live"


def test_the_manifest_is_consistent(manifests: dict[str, dict[str, Any]]) -> None:
    name = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert manifests[kind]["spec"]["selector"]["matchLabels"] == name
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == volumes
    settings = manifests["ConfigMap"]["data"]
    assert set(settings) <= set(FIELDS) - set(SECRETS)
    assert not gather(FIELDS, SECRETS, settings, None).problems
    Settings(**{key.lower(): value for key, value in settings.items()})


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_example_of_the_settings_is_current() -> None:
    generator = runpy.run_path(str(DEPLOY / "generate_env_example.py"))
    shown = (DEPLOY / "agent-smith.env.example").read_text()
    assert shown == generator["example"](), "run deploy/generate_env_example.py"


def test_the_example_of_the_settings_has_every_setting_and_no_secret() -> None:
    lines = (DEPLOY / "agent-smith.env.example").read_text().splitlines()
    assert max(map(len, lines)) < MAX_SECRET_BYTES
    names = {found[1] for line in lines if (found := re.match(r"#?([A-Z_]+)=", line))}
    assert names == {f"{name}_FILE" if name in SECRETS else name for name in FIELDS}
    active = dict(line.split("=", 1) for line in lines if line.startswith(PREFIXES))
    assert not {name for name in active if name.removesuffix("_FILE") in SECRETS}
    assert not gather(FIELDS, SECRETS, active, None).problems


# --- the image's requirements -----------------------------------------------------------------------------------------


def _pins(path: Path) -> Iterator[Requirement]:
    for line in path.read_text().replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            yield Requirement(re.sub(r"\s+--hash=\S+", "", line).strip())


@pytest.mark.parametrize("name", ["requirements.txt", "collections.txt", "build-requirements.txt"])
def test_the_images_requirements_have_hashes_and_the_versions_of_the_constraints(name: str) -> None:
    python = {"python_full_version": "3.13.5", "python_version": "3.13"}
    held = {
        pin.name: str(pin.specifier)
        for pin in _pins(PROJECT / "constraints.txt")
        if not pin.marker or pin.marker.evaluate(python)
    }
    text = (DEPLOY / "image" / name).read_text()
    pins = list(_pins(DEPLOY / "image" / name))
    assert pins
    stale = {pin.name for pin in pins if held.get(pin.name) != str(pin.specifier)}
    assert not stale, "run make constraints"
    assert len(re.findall(r"^[a-z][^ ]+==[^ ]+ \\\n +--hash=sha256:", text, re.MULTILINE)) == len(pins)


# --- Proxmox's role ---------------------------------------------------------------------------------------------------

#: A pveum for tests: keeps its state in a file and refuses what the real pveum refuses.
FAKE_PVEUM = """\
#!/usr/bin/env python3
import json, os, sys
path = os.environ["PVE_STATE"]
state = json.load(open(path))
args = sys.argv[1:]
state["calls"].append(args)
def option(name): return args[args.index(name) + 1]
def refuse(text): json.dump(state, open(path, "w")); sys.exit(text)
def privileges():
    names = option("--privs").split(",")
    unknown = set(names) & {"VM.Monitor" if state["version"] >= 9 else "VM.GuestAgent.Audit"}
    if unknown or not all(names): refuse(f"invalid privilege {unknown or names}")
    return names
what = " ".join(word for word in args if word.isalpha())
if args[:2] == ["role", "list"]:
    print(json.dumps([{"privs": ",".join(held), "roleid": name} for name, held in state["roles"].items()]))
elif args[:2] == ["role", "add"]:
    if args[2] in state["roles"]: refuse("role already exists")
    state["roles"][args[2]] = sorted(privileges())
elif args[:2] == ["role", "modify"]:
    held = state["roles"][args[2]] if "--append" in args else []
    state["roles"][args[2]] = sorted({*held, *privileges()})
elif args[:3] == ["user", "token", "list"]:
    if args[3] not in state["users"]: refuse("no such user")
    print(json.dumps([{"privsep": 1, "tokenid": name} for name in state["users"][args[3]]], indent=1))
elif args[:3] == ["user", "token", "add"]:
    if args[4] in state["users"][args[3]]: refuse("Token already exists.")
    assert option("--privsep") == "1"
    state["users"][args[3]].append(args[4])
    value = "0f0e0d0c-aaaa-bbbb-cccc-000000000001"
    print(json.dumps({"full-tokenid": "!".join(args[3:5]), "info": {"privsep": "1"}, "value": value}))
elif args[:2] == ["user", "list"]:
    print(json.dumps([{"enable": 1, "userid": name} for name in state["users"]]))
elif args[:2] == ["user", "add"]:
    if args[2] in state["users"]: refuse("user already exists")
    state["users"][args[2]] = []
elif args[:2] == ["acl", "modify"]:
    if option("--roles") not in state["roles"]: refuse("no such role")
    for who in (option("--users"), option("--tokens")):
        user, _, token = who.partition("!")
        if user not in state["users"] or (token and token not in state["users"][user]): refuse("no such user or token")
        entry = [args[2], who, option("--roles")]
        if entry not in state["acl"]: state["acl"].append(entry)
else:
    refuse(f"unknown command {args}")
json.dump(state, open(path, "w"))
"""
SECRET = "0f0e0d0c-aaaa-bbbb-cccc-000000000001"


class Node:
    """A Proxmox node: a folder with test programs for pveum and pveversion, first in PATH."""

    def __init__(self, folder: Path, version: int) -> None:
        self.state_file = folder / "state.json"
        self.state_file.write_text(json.dumps({"version": version, "roles": {}, "users": {}, "acl": [], "calls": []}))
        self._path = folder / "bin"
        self._path.mkdir()
        python = f"#!{os.path.realpath(sys.executable)} -IS"  # starts in a third of the time
        self._program("pveum", FAKE_PVEUM.replace("#!/usr/bin/env python3", python, 1))
        self._program(
            "pveversion", f"#!/bin/sh\necho 'pve-manager/{version}.0.3/0123456789abcdef (running kernel: 6)'\n"
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{self._path}:{os.environ['PATH']}", "PVE_STATE": str(self.state_file)}
        script = DEPLOY / "pveum-role.sh"
        return subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, check=False)

    def state(self) -> Mapping[str, Any]:
        return dict(json.loads(self.state_file.read_text()))

    def _program(self, name: str, text: str) -> None:
        (self._path / name).write_text(text)
        (self._path / name).chmod(0o755)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, 9)


USUAL = ("--storage", "local-lvm", "--storage", "ceph")


@pytest.mark.parametrize("version", [8, 9])
def test_the_script_grants_exactly_what_the_doctor_requires(tmp_path: Path, version: int) -> None:
    node = Node(tmp_path, version)
    done = node.run(*USUAL)
    assert done.returncode == 0, done.stderr
    state = node.state()
    wanted = needs(state["version"], storages=["local-lvm", "ceph"], bridge="vmbr0")
    assert {name: set(held) for name, held in state["roles"].items()} == {need.role: need.privileges for need in wanted}
    granted = {(need.path, who, need.role) for need in wanted for who in ("smith@pve", "smith@pve!job")}
    assert {tuple(entry) for entry in state["acl"]} == granted


def test_the_script_grants_the_optional_privileges(node: Node) -> None:
    assert node.run(*USUAL).returncode == 0
    usual = node.state()
    assert node.run(*USUAL, "--placement", "--backup", "--images", "local").returncode == 0
    more = node.state()
    roles = {name: held for name, held in more["roles"].items() if name not in usual["roles"]}
    assert roles == {"SmithNodes": ["Sys.Audit"], "SmithBackup": ["VM.Backup"], "SmithImages": ["Datastore.Audit"]}
    granted = {(path, role) for path, _who, role in more["acl"] if role in roles}
    assert granted == {("/nodes", "SmithNodes"), ("/vms", "SmithBackup"), ("/storage/local", "SmithImages")}
    wanted = needs(9, storages=["local-lvm"], images=["local", "local-lvm"], backups="local-lvm")
    assert {(need.path, need.role) for need in wanted if need.role in roles} == granted - {("/nodes", "SmithNodes")}


def test_the_script_prints_the_secret_once_and_alone_on_standard_output(node: Node) -> None:
    first, second = node.run(*USUAL), node.run(*USUAL)
    assert first.stdout == f"{SECRET}\n"
    assert SECRET not in first.stderr
    assert second.stdout == ""
    assert "its secret was printed when it was created" in second.stderr


def test_running_the_script_twice_changes_nothing(node: Node) -> None:
    assert node.run(*USUAL).returncode == 0
    before = node.state()
    again = node.run(*USUAL)
    assert again.returncode == 0, again.stderr
    after = node.state()
    assert {key: after[key] for key in ("roles", "users", "acl")} == {
        key: before[key] for key in ("roles", "users", "acl")
    }


def test_the_script_adds_privileges_to_a_role_and_removes_none(node: Node) -> None:
    state = dict(node.state()) | {"roles": {"SmithVM": ["VM.Audit", "VM.Console"]}}
    node.state_file.write_text(json.dumps(state))
    assert node.run(*USUAL).returncode == 0
    held = set(node.state()["roles"]["SmithVM"])
    assert held >= needs(state["version"], storages=[])[0].privileges | {"VM.Console"}


def test_a_dry_run_prints_every_command_and_runs_none(node: Node) -> None:
    before = node.state()
    done = node.run("--dry-run", *USUAL)
    assert done.returncode == 0, done.stderr
    after = node.state()
    assert {key: after[key] for key in ("roles", "users", "acl")} == {
        key: before[key] for key in ("roles", "users", "acl")
    }
    assert {tuple(call[:2]) for call in after["calls"]} == {("role", "list"), ("user", "list")}
    for line in ("pveum role add SmithVM", "pveum user token add smith@pve job", "pveum acl modify /storage/ceph"):
        assert line in done.stderr


def test_the_script_writes_the_secret_to_a_file_with_mode_0600(node: Node, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    done = node.run(*USUAL, "--secret-file", str(file))
    assert done.returncode == 0, done.stderr
    assert file.read_text() == f"{SECRET}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert SECRET not in done.stdout + done.stderr
    assert node.run(*USUAL, "--secret-file", str(file)).returncode == 0, "the second run creates no secret"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "--storage is missing"),
        (("--storage", "a; reboot"), "needs a name"),
        (("--storage", "--zone"), "needs a name"),
        (("--storage",), "needs a value"),
        (("--storage", "local", "--user", "smith"), "needs a realm"),
        (("--shelf", "local"), "unknown argument"),
    ],
)
def test_the_script_refuses_bad_arguments_before_any_change(node: Node, arguments: tuple[str, ...], what: str) -> None:
    done = node.run(*arguments)
    assert done.returncode == 2
    assert what in done.stderr
    assert node.state()["calls"] == []


def test_the_script_refuses_an_unknown_version_of_proxmox(tmp_path: Path) -> None:
    node = Node(tmp_path, 7)
    done = node.run(*USUAL)
    assert done.returncode != 0
    assert "this is for Proxmox VE 8 and 9" in done.stderr
    assert node.state()["calls"] == []
