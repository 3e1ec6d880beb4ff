"""Reads and checks all settings once, at the start of a command, and reports all problems together.

`sources.py` finds the values, and `types.py` checks them. The settings are divided into areas, such as the settings of
the agent process. Each area has a module, such as `agent.py`, that declares its settings. `display.py` makes the tables
of docs/settings.md from these declarations.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ConfigDict, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo

from executor.errors import SettingsError
from executor.settings.agent import AgentSettings
from executor.settings.deletion import DeletionSettings
from executor.settings.files import FileSettings
from executor.settings.fulcrum import FulcrumSettings
from executor.settings.monitoring import MonitoringSettings
from executor.settings.new_vms import NewVmSettings
from executor.settings.problems import problem_line, problems_in, raise_if_problems
from executor.settings.proxmox import ProxmoxSettings
from executor.settings.runs import RunSettings
from executor.settings.sources import Problem, gather_values
from executor.settings.tenants import TenantSettings
from executor.settings.types import is_local_address


# Pydantic checks the last base class first. So the default and the check of a setting may depend on the settings of
# later base classes in this list.
class Settings(
    MonitoringSettings,
    AgentSettings,
    DeletionSettings,
    TenantSettings,
    RunSettings,
    FileSettings,
    NewVmSettings,
    ProxmoxSettings,
    FulcrumSettings,
):
    """All settings. `load_settings` reads the values from their sources; `Settings(…)` uses only its arguments."""

    # The base classes are not instantiated, so they have defer_build=True: pydantic builds no validators for them.
    model_config = ConfigDict(defer_build=False)

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def origin_of(self, name: str) -> str:
        """Return the origin of a setting's value: `default`, `environment`, the path of a file, or `FulcrumCore`.

        FulcrumCore supplies values only if SMITH_REMOTE_CONFIG is true. The origin `argument` means that the value was
        passed as an argument of `Settings(…)`.
        """
        if name in self._origins:
            return self._origins[name]
        return "argument" if name.lower() in self.model_fields_set else "default"

    def insecure_settings(self) -> list[tuple[str, str]]:
        """Return each setting whose value turns off the protection by TLS: its name, and the danger of this value."""
        url = urlsplit(self.fulcrum_api_url)
        insecure = []
        if url.scheme == "http" and not is_local_address(f"{url.hostname}:0"):  # is_local_address ignores the port
            insecure.append(("FULCRUM_API_URL", "http:// lets every machine on the network path read the token"))
        if url.scheme == "https" and not self.fulcrum_verify_tls:
            insecure.append(("FULCRUM_VERIFY_TLS", "a machine between the agent and FulcrumCore can read the token"))
        if self.proxmox_host and not self.proxmox_validate_certs:
            insecure.append(("PROXMOX_VALIDATE_CERTS", "a machine between the agent and Proxmox can read the token"))
        return insecure


#: The declarations of all settings, in the order of the documentation. The keys are names of environment variables.
FIELDS: dict[str, FieldInfo] = {name.upper(): field for name, field in Settings.model_fields.items()}
#: The names of the settings that are secrets or contain a secret. Each may have its value in a file of its own. Secrets
#: are masked wherever settings are shown.
SECRET_SETTING_NAMES = (
    "FULCRUM_API_TOKEN",
    "PROXMOX_TOKEN_SECRET",
    "PROXMOX_PASSWORD",
    "SMITH_DATABASE_URL",
    "SMITH_HTTP_TOKEN",
)


def load_settings(*, env_file: Path | None = Path(".env"), environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check the settings. Return an immutable object.

    Raises SettingsError, whose text has one line per problem. No line shows a secret.
    """
    gathered = gather_values(
        names=FIELDS,
        secret_names=SECRET_SETTING_NAMES,
        environ=os.environ if environ is None else environ,
        env_file=env_file,
    )
    problem_lines = [_format_problem(problem) for problem in gathered.problems]
    values: dict[str, Any] = {name.lower(): value for name, value in gathered.values.items()}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problem_lines += [problem_line(Settings, name, text) for name, text in problems_in(error).items()]
        raise SettingsError("\n".join(problem_lines)) from None  # the text of pydantic's exception would show values
    raise_if_problems(problem_lines)
    settings._origins.update(gathered.origins)
    return settings


def _format_problem(problem: Problem) -> str:
    """Return the line of the error text that reports this problem."""
    if not problem.name:
        return problem.text  # the problem does not belong to one setting
    return problem_line(Settings, problem.name, problem.text)


def override_settings(
    settings: Settings, values: Mapping[str, Any], origin: str, *, names_to_reset: frozenset[str] = frozenset()
) -> Settings:
    """Return a copy of the settings in which `values` replace the current values. The new values get this `origin`.

    The keys of `values` are names of attributes. The attributes in `names_to_reset` get their default. A default that
    depends on other settings is computed again. Raises pydantic's ValidationError.
    """
    current_values = {name: getattr(settings, name) for name in settings.model_fields_set - names_to_reset}
    new_settings = Settings(**{**current_values, **values})
    new_settings._origins.update(settings._origins)
    new_settings._origins.update({name.upper(): origin for name in values})
    for name in names_to_reset:
        new_settings._origins.pop(name.upper(), None)
    return new_settings
