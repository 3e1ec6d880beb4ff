"""`smith config`: the effective settings with their sources, and an example `.env` file."""

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
    rows, wrong, incomplete = _all_settings()
    if as_json:
        show_json({"settings": [asdict(row) for row in rows], "problems": wrong + incomplete})
    else:
        show_rows([asdict(row) for row in rows], COLUMNS, nothing="")
        for line in wrong + incomplete:
            show_error(line)
    if wrong:
        raise typer.Exit(EXIT_SETTINGS)


@examples(
    "smith config example > .env",
)
def example() -> None:
    """Print an example `.env` file.

    It has the required settings, and all others as comments.
    """
    show_text(example_env().rstrip("\n"))


def _all_settings() -> tuple[list[SettingRow], list[str], list[str]]:
    """Return a row per setting, the lines on invalid settings, and the lines on missing ones."""
    wrong: list[str] = []
    try:
        settings = load_settings(env_file=ENV_FILE)
    except SettingsError as error:
        wrong = str(error).splitlines()
        rows, settings = _raw_settings(wrong)
    else:
        redactor.add(*secret_values(settings))
        rows = describe(settings)
    incomplete = missing_lines(settings)
    missing = {_name_in(line) for line in incomplete}
    return (
        [replace(row, value=row.value or "missing") if row.name in missing else row for row in rows],
        wrong,
        incomplete,
    )


def _raw_settings(wrong: list[str]) -> tuple[list[SettingRow], Settings]:
    """Return the raw values, for settings that are invalid: the valid ones among them are shown too."""
    found = gather(FIELDS, SECRETS, os.environ, ENV_FILE)
    shown = found.values | {name: MASK for name in SECRETS if name in found.values}
    # An invalid value is not shown: it may be a secret in the wrong setting.
    shown |= {name: "wrong" for line in wrong if (name := _name_in(line)) in FIELDS}
    redactor.add(*(found.values[name] for name in SECRETS if name in found.values))
    rows = [
        replace(row, value=shown.get(row.name, row.value), origin=found.origins.get(row.name, row.origin))
        for row in describe(Settings())
    ]
    outside: dict[str, Any] = {
        name.lower(): value for name, value in found.values.items() if not name.startswith("SMITH_")
    }
    return rows, Settings.model_construct(**outside)  # without validation: used only to find missing settings


def _name_in(line: str) -> str:
    return line.split(" ", 1)[0]
