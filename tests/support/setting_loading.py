"""Loads settings from given environment variables and files, for the tests of settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.errors import SettingsError
from executor.settings.display import setting_rows
from executor.settings.settings import Settings, load_settings

#: A secret that no error message may contain.
SECRET = "hunter22-canary"


def load(environ: dict[str, str] | None = None, *, env_file: Path | None = None) -> Settings:
    return load_settings(env_file=env_file, environ=environ or {})


def error_lines_of(environ: dict[str, str], *, env_file: Path | None = None) -> list[str]:
    """Return the lines of the SettingsError that these variables cause."""
    with pytest.raises(SettingsError) as caught:
        load(environ, env_file=env_file)
    assert SECRET not in str(caught.value)
    return str(caught.value).splitlines()


def origin_of(settings: Settings, name: str) -> str:
    """Return where the value of a setting comes from, as `smith settings` shows it."""
    return next(row.origin for row in setting_rows(settings) if row.name == name)
