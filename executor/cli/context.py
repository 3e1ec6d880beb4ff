"""The settings, as a command reads them."""

from __future__ import annotations

from executor.errors import SettingsError
from executor.redaction import redactor
from executor.settings.masking import secret_values
from executor.settings.settings import Settings, load_settings

#: For files that we create: they may contain a run's output, so only their owner may read them.
PRIVATE_UMASK = 0o077


def open_settings() -> Settings:
    """Read the settings, and register their secrets with the redactor. Raises SettingsError."""
    settings = load_settings()
    redactor.add(*secret_values(settings))
    return settings


def missing_lines(settings: Settings) -> list[str]:
    """Return a line for each missing setting that `smith run` needs.

    With SMITH_REMOTE_CONFIG the settings for Proxmox may come from FulcrumCore: the agent checks them after it has
    asked.
    """
    lines: list[str] = []
    requires = (settings.require_fulcrum, settings.require_proxmox)
    for require in requires[:1] if settings.smith_remote_config else requires:
        try:
            require()
        except SettingsError as error:
            lines += str(error).splitlines()
    return lines
