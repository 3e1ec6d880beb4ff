"""Merges options, an earlier run's settings and proposed settings into the settings that `smith init` writes.

In this module, a run is a run of `smith init`. A run proposes settings that fit the Proxmox cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import typer

from executor.cli.init_files import SetupFolder
from executor.cli.init_units import UnitKind, container_path
from executor.proxmox.connection import DEFAULT_PORT
from executor.settings.settings import FIELDS, SECRET_SETTING_NAMES, Settings, load_settings

#: The agent's user in Proxmox, and the name of this user's token.
DEFAULT_USER, DEFAULT_TOKEN = "smith@pve", "job"
#: The data folder of an agent that systemd starts.
SYSTEMD_DATA_FOLDER = "/var/lib/agent-smith"


class InitSettings:
    """The settings that `smith init` writes: the name and the value of each setting."""

    all_setting_names = frozenset(FIELDS)

    def __init__(self, stored_values: Mapping[str, str], option_values: Mapping[str, str]) -> None:
        """`stored_values` are from the file of an earlier run, and `option_values` from the option --set."""
        self._values = {**stored_values, **option_values}
        self._names_set_by_option = frozenset(option_values)

    def get(self, name: str) -> str:
        """Return the value of the setting; '' if it is not set."""
        return self._values.get(name, "")

    def update(self, values: Mapping[str, str]) -> None:
        """Set these values."""
        self._values.update(values)

    def set_connection(self, *, host: str, port: int, user: str | None, token_id: str | None) -> None:
        """Set the agent's connection to Proxmox.

        If `user` or `token_id` is None, the value of an earlier run is kept. In a first run, the default is used.
        """
        self.update(
            {
                "PROXMOX_HOST": host,
                "PROXMOX_PORT": "" if port == DEFAULT_PORT else str(port),
                "PROXMOX_USER": user or self.get("PROXMOX_USER") or DEFAULT_USER,
                "PROXMOX_TOKEN_ID": token_id or self.get("PROXMOX_TOKEN_ID") or DEFAULT_TOKEN,
            }
        )

    def proposal_with_earlier_values(self, proposal: Mapping[str, str]) -> dict[str, str]:
        """Return the proposed settings. A value of an earlier run or of the option --set replaces the proposed value.

        The file has no line for an empty setting. If an earlier run has written the file, and the file has no line for
        a proposed setting, the operator left this setting empty. Then the setting stays empty.
        """
        is_first_run = not any(name in self._values for name in proposal if name not in self._names_set_by_option)
        defaults = proposal if is_first_run else dict.fromkeys(proposal, "")
        return {name: self._values.get(name, defaults[name]) for name in proposal}

    def validated(self) -> Settings:
        """Return the validated settings without the settings in PATH_SETTINGS, whose files may not exist yet.

        Raises SettingsError if a setting is not valid.
        """
        values_without_paths = {name: value for name, value in self._values.items() if name not in PATH_SETTINGS}
        return load_settings(env_file=None, environ=values_without_paths)

    def values_for_agent(self, setup_folder: SetupFolder, unit_kind: UnitKind, *, has_ca_file: bool) -> dict[str, str]:
        """Return the settings for the file that the agent reads.

        `has_ca_file`: whether `smith init` writes the CA of Proxmox's certificate to `setup_folder.ca_file`.
        """
        ca_file = container_path(setup_folder.ca_file) if unit_kind.is_container else setup_folder.ca_file
        values = {**self._values, "PROXMOX_CA_BUNDLE": str(ca_file) if has_ca_file else ""}
        # A systemd unit or a container sets the secrets folder and the data folder. With UnitKind.NONE, the operator
        # starts the agent with a command, so the settings must name both folders. With another kind, the paths that an
        # earlier run with UnitKind.NONE has written are removed. A path that an operator has set is kept.
        for name, path in (
            ("SMITH_SECRETS_DIR", setup_folder.secrets_folder),
            ("SMITH_DATA_DIR", setup_folder.path / "data"),
        ):
            if unit_kind is UnitKind.NONE:
                values[name] = values.get(name) or str(path)
            elif values.get(name) == str(path):
                values[name] = ""
        return values

    def values_for_doctor(self, setup_folder: SetupFolder, unit_kind: UnitKind, *, has_ca_file: bool) -> dict[str, str]:
        """Return the settings for the checks of `smith doctor`.

        The checks run on this machine, even if the agent runs in a container. So the paths are those of this machine.
        """
        values = self.values_for_agent(setup_folder, UnitKind.NONE, has_ca_file=has_ca_file)
        if unit_kind is UnitKind.SYSTEMD:
            values["SMITH_DATA_DIR"] = SYSTEMD_DATA_FOLDER
        return {name: value for name, value in values.items() if value}


#: The settings whose values are paths of files and folders that `smith init` creates.
PATH_SETTINGS = frozenset({"PROXMOX_CA_BUNDLE", "SMITH_SECRETS_DIR", "SMITH_DATA_DIR"})


def parse_assignments(texts: Iterable[str]) -> dict[str, str]:
    """Return the settings in the values NAME=VALUE of the option --set.

    Raises typer.BadParameter for a text without `=`, for an unknown setting and for a secret.
    """
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name in SECRET_SETTING_NAMES:
            raise typer.BadParameter(
                f"--set {name}: a secret must not be an argument, because other users can read the arguments"
            )
        if not equals:
            raise typer.BadParameter(f"--set {name}: the '=' of NAME=VALUE is missing")
        if name not in FIELDS:
            raise typer.BadParameter(f"--set {name}: there is no setting of this name (`smith config show` lists them)")
        values[name] = value
    return values


def parse_address(text: str, default_port: int) -> tuple[str, int]:
    """Return the host and the port of `HOST[:PORT]`. An IPv6 address with a port must have brackets.

    Raises typer.BadParameter if the port is out of range.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or (":" in host and not host.endswith("]")):
        return text, default_port
    if not 1 <= int(port) <= 65_535:
        raise typer.BadParameter(f"{text}: the port must be a number from 1 to 65535")
    return host, int(port)
