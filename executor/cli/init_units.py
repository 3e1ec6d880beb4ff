"""Makes the unit that starts the agent (a systemd unit, podman quadlet or compose file) from the files in `deploy/`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from executor.deploy_files import find_deploy_file
from executor.errors import SettingsError

#: The path of the settings folder in the files in `deploy/`. In a container, the settings are always in this folder.
DEPLOY_SETTINGS_FOLDER = Path("/etc/agent-smith")
#: The user id of the agent in a container.
CONTAINER_UID = 10001
#: The path of `smith`, and the mount of the file with the CA, in the files in `deploy/`.
_DEPLOY_PROGRAM = "/opt/agent-smith/bin/smith"
_CA_VOLUME = f"{DEPLOY_SETTINGS_FOLDER}/proxmox-ca.pem:{DEPLOY_SETTINGS_FOLDER}/proxmox-ca.pem:ro"
#: Matches a path without characters that systemd, podman, docker or a shell would interpret.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._/@+-]+")
#: The folders that the agent cannot see if systemd starts it: the unit's options ProtectHome and PrivateTmp hide them.
_HIDDEN_FOLDERS = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 (nothing is written there)


class UnitKind(StrEnum):
    """How the agent is started."""

    SYSTEMD = "systemd"
    QUADLET = "quadlet"
    COMPOSE = "compose"
    NONE = "none"  #: the operator starts the agent with a command

    @property
    def is_container(self) -> bool:
        """Whether the agent runs in a container."""
        return self in (UnitKind.QUADLET, UnitKind.COMPOSE)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The files that start the agent, and the command with which the operator starts it."""

    #: The text of each file.
    files: Mapping[Path, str]
    start_command: str


def make_unit(kind: UnitKind, folder: Path, unit_folder: Path | None, *, has_ca_file: bool) -> Unit:
    """Return the unit of an agent whose settings are in `folder`.

    The unit's files belong in `unit_folder`. If `unit_folder` is None, a compose file belongs in `folder`, and a
    systemd unit or quadlet in the folder in which systemd or podman looks for it.

    `has_ca_file`: whether `smith init` writes the CA of Proxmox's certificate to a file in `folder`.
    """
    if kind is UnitKind.SYSTEMD:
        target_folder = unit_folder or Path("/etc/systemd/system")
        text = _systemd_unit_text(folder)
        command = "systemctl daemon-reload && systemctl enable --now agent-smith"
        return Unit(files={target_folder / "agent-smith.service": text}, start_command=command)
    if kind is UnitKind.QUADLET:
        target_folder = unit_folder or Path("/etc/containers/systemd")
        files = {
            target_folder / "agent-smith.container": _quadlet_text(folder, has_ca_file=has_ca_file),
            target_folder / "agent-smith.volume": _read_deploy_file("quadlet/agent-smith.volume"),
        }
        command = _preceded_by_chown(folder, "systemctl daemon-reload && systemctl start agent-smith")
        return Unit(files=files, start_command=command)
    if kind is UnitKind.COMPOSE:
        file = (unit_folder or folder) / "compose.yaml"
        command = f"docker compose --file {shlex.quote(str(file))} up --detach"
        return Unit(
            files={file: _compose_text(folder, has_ca_file=has_ca_file)},
            start_command=_preceded_by_chown(folder, command),
        )
    settings_file = shlex.quote(str(folder / "agent-smith.env"))
    program = shlex.join([str(_smith_program()), "run"])
    return Unit(files={}, start_command=f"(set -a; . {settings_file}; exec {program})")


def require_paths_usable_in_unit(kind: UnitKind, folder: Path) -> None:
    """Raise SettingsError if a path has a character that a unit does not accept, or if systemd hides the path.

    The paths are the settings folder and, for a systemd unit, the program `smith`.
    """
    if kind is UnitKind.NONE:
        return
    paths = [folder] if kind.is_container else [folder, _smith_program()]
    for path in paths:
        if not _PLAIN_PATH.fullmatch(str(path)):
            raise SettingsError(
                f"{path} has a character that a unit does not accept: use only A-Z a-z 0-9 . _ / @ + - in the path"
            )
        if kind is UnitKind.SYSTEMD and any(path.is_relative_to(hidden_folder) for hidden_folder in _HIDDEN_FOLDERS):
            remedy = "choose --folder /etc/agent-smith, and install Agent Smith in /opt/agent-smith; or use --unit none"
            raise SettingsError(f"systemd hides {path} from the agent (ProtectHome, PrivateTmp): {remedy}")


def container_path(path: Path) -> Path:
    """Return the path that a file of the settings folder has in the container."""
    return DEPLOY_SETTINGS_FOLDER / path.name


def _smith_program() -> Path:
    """Return the path of the program `smith` of this installation."""
    return Path(sys.executable).parent / "smith"


def _systemd_unit_text(folder: Path) -> str:
    text = _read_deploy_file("systemd/agent-smith.service").replace(_DEPLOY_PROGRAM, str(_smith_program()))
    # The unit in `deploy/` reads the secrets from the settings folder, but `smith init` writes them to the folder
    # `secrets` in the settings folder.
    for name in ("fulcrum_api_token", "proxmox_token_secret"):
        text = text.replace(f"{DEPLOY_SETTINGS_FOLDER}/{name}", f"{DEPLOY_SETTINGS_FOLDER}/secrets/{name}")
    return text.replace(str(DEPLOY_SETTINGS_FOLDER), str(folder))


def _quadlet_text(folder: Path, *, has_ca_file: bool) -> str:
    """Return the quadlet of `deploy/`, but with the folder of the secrets mounted instead of podman's own secrets."""
    lines = []
    for line in _read_deploy_file("quadlet/agent-smith.container").splitlines():
        if line.startswith("Secret=proxmox_token_secret"):
            lines.append(f"Volume={folder}/secrets:/run/secrets:ro")
        elif line == f"#Volume={_CA_VOLUME}" and has_ca_file:
            lines.append(f"Volume={folder}/proxmox-ca.pem:{DEPLOY_SETTINGS_FOLDER}/proxmox-ca.pem:ro")
        elif not line.startswith(("Secret=", "#   podman secret")):
            lines.append(line.replace(f"EnvironmentFile={DEPLOY_SETTINGS_FOLDER}", f"EnvironmentFile={folder}"))
    return "\n".join(lines) + "\n"


def _compose_text(folder: Path, *, has_ca_file: bool) -> str:
    """Return the compose file of `deploy/`, reduced to the compose service of one agent.

    The file in `deploy/` also defines several agents (there called nodes) that use one PostgreSQL database.
    """
    text = _read_deploy_file("compose.yaml")
    shared_definitions, _, remaining_text = text.partition("\n# Each node has a host name")
    agent_service = remaining_text.partition("\nservices:\n")[2].partition("\n  node-1:\n")[0]
    secret_definitions = (
        remaining_text.partition("\nvolumes:\n")[2].partition("\n\n")[2].partition("  smith_database_url:")[0]
    )
    text = f"{shared_definitions}\nservices:\n{agent_service}\nvolumes:\n  data: {{}}\n\n{secret_definitions}"
    if has_ca_file:
        text = text.replace("# - ./proxmox-ca.pem:", "- ./proxmox-ca.pem:")
    for name in ("agent-smith.env", "proxmox-ca.pem", "secrets/"):
        text = text.replace(f"./{name}", f"{folder}/{name}")
    return text.replace("path: agent-smith.env, required: false", f"path: {folder}/agent-smith.env")


def _preceded_by_chown(folder: Path, command: str) -> str:
    """Return the command, preceded by a command that makes the container's user the owner of the secrets."""
    owner = f"{CONTAINER_UID}:{CONTAINER_UID}"
    return f"chown -R {owner} {shlex.quote(str(folder / 'secrets'))} && {command}"


def _read_deploy_file(name: str) -> str:
    return find_deploy_file(name).read_text(encoding="utf-8")
