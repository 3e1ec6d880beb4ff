"""`smith config`: shows each setting's value and the value's origin, and prints an example `.env` file."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer
from pydantic import TypeAdapter, ValidationError

from executor.cli.arguments import AsJson
from executor.cli.context import missing_setting_errors
from executor.cli.help_text import examples
from executor.cli.output import show_error, show_json, show_text
from executor.cli.tables import show_rows
from executor.errors import EXIT_SETTINGS, SettingsError
from executor.redaction import MASK, redactor
from executor.settings.display import SettingRow, example_env, setting_rows
from executor.settings.masking import secret_values
from executor.settings.settings import FIELDS, SECRET_SETTING_NAMES, Settings, load_settings
from executor.settings.sources import gather_values

COLUMNS = {"name": "NAME", "value": "VALUE", "origin": "FROM", "unit": "UNIT", "default": "DEFAULT"}
ENV_FILE = Path(".env")


@examples(
    "smith config show",
    "smith config show --json",
)
def show_settings(as_json: AsJson = False) -> None:
    """Show every setting with the origin of its value, such as a file or the default.

    Secrets are masked. Missing and invalid settings are reported.
    """
    rows, invalid_setting_lines, missing_setting_lines = _read_settings()
    if as_json:
        show_json(
            {"settings": [asdict(row) for row in rows], "problems": invalid_setting_lines + missing_setting_lines}
        )
    else:
        show_rows([asdict(row) for row in rows], COLUMNS, if_empty="")
        for line in invalid_setting_lines + missing_setting_lines:
            show_error(line)
    if invalid_setting_lines:
        raise typer.Exit(EXIT_SETTINGS)


@examples(
    "smith config example > .env",
)
def print_example() -> None:
    """Print an example `.env` file.

    The file contains the required settings, and all other settings as comments.
    """
    show_text(example_env().rstrip("\n"))


def _read_settings() -> tuple[list[SettingRow], list[str], list[str]]:
    """Return one row for each setting, the error lines of invalid settings, and the error lines of missing settings."""
    invalid_setting_lines: list[str] = []
    try:
        settings = load_settings(env_file=ENV_FILE)
    except SettingsError as error:
        invalid_setting_lines = str(error).splitlines()
        rows, settings = _read_without_validation(invalid_setting_lines)
    else:
        redactor.add(*secret_values(settings))
        rows = setting_rows(settings)
    missing_setting_lines = missing_setting_errors(settings)
    missing_names = {_setting_name_of(line) for line in missing_setting_lines}
    # Only one of password and token may be set. If both are set, `missing_setting_errors` reports PROXMOX_PASSWORD, so
    # `missing_names` contains it. Its row keeps the value.
    rows = [replace(row, value=row.value or "missing") if row.name in missing_names else row for row in rows]
    return rows, invalid_setting_lines, missing_setting_lines


def _read_without_validation(invalid_setting_lines: list[str]) -> tuple[list[SettingRow], Settings]:
    """Return one row for each setting with its unvalidated value, and a Settings object with unvalidated values.

    Called when a setting is invalid, so that `smith config show` can still show the other settings. Each line of
    `invalid_setting_lines` begins with the name of an invalid setting.
    """
    # FIELDS maps the name of each setting, in capital letters, to its declaration.
    sources = gather_values(names=FIELDS, secret_names=SECRET_SETTING_NAMES, environ=os.environ, env_file=ENV_FILE)
    secrets = {name: sources.values[name] for name in SECRET_SETTING_NAMES if name in sources.values}
    redactor.add(*secrets.values())
    shown_values = sources.values | dict.fromkeys(secrets, MASK)
    # An invalid value is not shown: it may be a secret that the operator wrote into the wrong setting.
    invalid_names = {_setting_name_of(line) for line in invalid_setting_lines}
    shown_values |= {name: "invalid" for name in invalid_names if name in FIELDS}
    # Settings() reads no file and no environment variable: it contains the defaults.
    rows = [
        replace(row, value=shown_values.get(row.name, row.value), origin=sources.origins.get(row.name, row.origin))
        for row in setting_rows(Settings())
    ]
    # All required settings are settings for FulcrumCore or Proxmox, whose names do not begin with SMITH_.
    connection_settings: dict[str, Any] = {
        name.lower(): value for name, value in sources.values.items() if not name.startswith("SMITH_")
    }
    # If SMITH_REMOTE_CONFIG is true, FulcrumCore may provide the settings for Proxmox, so none of them is reported as
    # missing. An invalid SMITH_REMOTE_CONFIG counts as false.
    with contextlib.suppress(ValidationError):
        is_remote_config = TypeAdapter(bool).validate_python(sources.values.get("SMITH_REMOTE_CONFIG") or "false")
        connection_settings["smith_remote_config"] = is_remote_config
    # model_construct validates nothing. The Settings object is used only to find out which settings are missing.
    return rows, Settings.model_construct(**connection_settings)


def _setting_name_of(line: str) -> str:
    """Return the name of the setting, which is the first word of the error line."""
    return line.split(" ", 1)[0]
