"""`smith config`: shows the effective settings with their sources, and prints an example `.env` file."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer

from executor.cli.arguments import AsJson
from executor.cli.context import missing_lines
from executor.cli.help_text import examples
from executor.cli.output import show_error, show_json, show_text
from executor.cli.tables import show_rows
from executor.errors import EXIT_SETTINGS, SettingsError
from executor.redaction import MASK, redactor
from executor.settings.display import SettingRow, describe, example_env
from executor.settings.masking import secret_values
from executor.settings.settings import FIELDS, SECRETS, Settings, load_settings
from executor.settings.sources import gather

COLUMNS = {"name": "NAME", "value": "VALUE", "origin": "FROM", "unit": "UNIT", "default": "DEFAULT"}
ENV_FILE = Path(".env")


@examples(
    "smith config show",
    "smith config show --json",
)
def show(as_json: AsJson = False) -> None:
    """Show every setting with its source.

    Secrets are masked. Missing and invalid settings are reported.
    """
    rows, invalid, missing_settings = _all_settings()
    if as_json:
        show_json({"settings": [asdict(row) for row in rows], "problems": invalid + missing_settings})
    else:
        show_rows([asdict(row) for row in rows], COLUMNS, if_empty="")
        for line in invalid + missing_settings:
            show_error(line)
    if invalid:
        raise typer.Exit(EXIT_SETTINGS)


@examples(
    "smith config example > .env",
)
def example() -> None:
    """Print an example `.env` file.

    It has the required settings, and all other settings as comments.
    """
    show_text(example_env().rstrip("\n"))


def _all_settings() -> tuple[list[SettingRow], list[str], list[str]]:
    """Return one row for each setting, the error lines of invalid settings, and the error lines of missing settings."""
    invalid: list[str] = []
    try:
        settings = load_settings(env_file=ENV_FILE)
    except SettingsError as error:
        invalid = str(error).splitlines()
        rows, settings = _raw_settings(invalid)
    else:
        redactor.add(*secret_values(settings))
        rows = describe(settings)
    missing_settings = missing_lines(settings)
    missing_names = {_name_in(line) for line in missing_settings}
    return (
        [replace(row, value=row.value or "missing") if row.name in missing_names else row for row in rows],
        invalid,
        missing_settings,
    )


def _raw_settings(invalid: list[str]) -> tuple[list[SettingRow], Settings]:
    """Return one row for each setting with its unvalidated value, and unvalidated settings.

    Used when a setting is invalid, so that the valid settings are shown, too. `invalid` has one error line for each
    invalid setting. Each line begins with the setting's name.
    """
    found = gather(FIELDS, SECRETS, os.environ, ENV_FILE)
    shown = found.values | {name: MASK for name in SECRETS if name in found.values}
    # An invalid value is not shown: it may be a secret that the operator wrote into the wrong setting.
    shown |= {name: "wrong" for line in invalid if (name := _name_in(line)) in FIELDS}
    redactor.add(*(found.values[name] for name in SECRETS if name in found.values))
    rows = [
        replace(row, value=shown.get(row.name, row.value), origin=found.origins.get(row.name, row.origin))
        for row in describe(Settings())
    ]
    external_settings: dict[str, Any] = {
        name.lower(): value for name, value in found.values.items() if not name.startswith("SMITH_")
    }
    # model_construct validates nothing. These settings are used only to find out which settings are missing.
    return rows, Settings.model_construct(**external_settings)


def _name_in(line: str) -> str:
    """Return the first word of an error line, which is the name of the setting."""
    return line.split(" ", 1)[0]
