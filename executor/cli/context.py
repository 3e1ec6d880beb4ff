"""Reads the settings for a command, and finds the settings that are missing."""

from __future__ import annotations

from executor.errors import SettingsError
from executor.redaction import redactor
from executor.settings.masking import secret_values
from executor.settings.settings import Settings, load_settings

#: The umask for the files that agents and commands create (database, artifacts, backups): only the owner can read them.
PRIVATE_UMASK = 0o077


def open_settings() -> Settings:
    """Read the settings, and register their secrets with the redactor. Raises SettingsError if a setting is invalid."""
    settings = load_settings()
    redactor.add(*secret_values(settings))
    return settings


def missing_setting_errors(settings: Settings) -> list[str]:
    """Return one error line for each missing setting that `smith run` needs.

    With SMITH_REMOTE_CONFIG, FulcrumCore may store the settings for Proxmox, so this function does not check them. The
    agent checks them after it has read its configuration from FulcrumCore.
    """
    lines: list[str] = []
    requirement_checks = [settings.require_fulcrum_settings]
    if not settings.smith_remote_config:
        requirement_checks.append(settings.require_proxmox_settings)
    for raise_if_missing in requirement_checks:
        try:
            raise_if_missing()
        except SettingsError as error:
            lines += str(error).splitlines()
    return lines
