"""The settings, opened for a command."""

from __future__ import annotations

from executor.errors import SettingsError
from executor.redaction import redactor
from executor.settings.masking import secret_values
from executor.settings.settings import Settings, load_settings

#: Files that we make may hold what a run printed: they are their owner's alone.
PRIVATE_UMASK = 0o077


def open_settings() -> Settings:
    """Read the settings; their secrets are masked in everything from now on. Raises SettingsError."""
    settings = load_settings()
    redactor.add(*secret_values(settings))
    return settings


def missing_lines(settings: Settings) -> list[str]:
    """Return a line for each setting that `smith run` still needs.

    Those of Proxmox may come from FulcrumCore, which only the agent asks: it looks again then.
    """
    lines: list[str] = []
    requires = (settings.require_fulcrum, settings.require_proxmox)
    for require in requires[:1] if settings.smith_remote_config else requires:
        try:
            require()
        except SettingsError as error:
            lines += str(error).splitlines()
    return lines
