"""Secrets that may change while the agent runs.

They are read again on HUP, before a run when a secret's file has changed, and when a server refuses one. All sources of
the settings are read (files, mounted secrets, environment, `.env`, FulcrumCore's configuration), but only the three
secrets below are replaced: every other setting needs a restart. Invalid values are logged and change nothing. Old
values stay redacted, because later output may still contain them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from executor.errors import FulcrumError, SettingsError
from executor.log import get_logger
from executor.proxmox.connection import ProxmoxConnection
from executor.redaction import redactor
from executor.runs.private_folder import module_credentials
from executor.settings.display import describe
from executor.settings.masking import secret_values
from executor.settings.settings import Settings

log = get_logger(__name__)

#: Minimum time between two reloads because of a refused secret: it may stay refused for days.
MIN_RELOAD_INTERVAL_S = 10.0
#: The variables that a reload replaces.
FULCRUM_SECRETS = ("FULCRUM_API_TOKEN",)
PROXMOX_SECRETS = ("PROXMOX_TOKEN_SECRET", "PROXMOX_PASSWORD")


class ReloadableSecrets:
    """Holds the current secrets. Thread-safe; a caller gets values that belong together."""

    def __init__(self, settings: Settings, read: Callable[[], Settings]) -> None:
        self._settings = settings
        self._read = read
        self._overlay: Callable[[Settings], Settings] | None = None
        self._lock = threading.Lock()
        self._reloaded_at: float | None = None
        self._files = _secret_files(settings)
        self._stamps = _stamps(self._files)
        self._connection = ProxmoxConnection.from_settings(settings) if settings.proxmox_host else None

    def use_remote_settings(self, settings: Settings, overlay: Callable[[Settings], Settings]) -> None:
        """Use settings that include FulcrumCore's configuration, and read that again at each reload.

        `overlay` raises FulcrumError or SettingsError when FulcrumCore's configuration cannot be read.
        """
        self._settings, self._overlay = settings, overlay
        self._connection = ProxmoxConnection.from_settings(settings)

    def fulcrum_token(self) -> str:
        """Return the agent's token."""
        return self._settings.fulcrum_api_token.get_secret_value()

    def credentials(self) -> dict[str, Any]:
        """Return the credentials of a run's modules; changed files are read first."""
        if _stamps(self._files) != self._stamps:
            self.reload()
        return module_credentials(self._settings)

    def connection(self) -> ProxmoxConnection:
        """Return the Proxmox connection; the same object until a secret changes."""
        if self._connection is None:
            self._settings.require_proxmox()
            self._connection = ProxmoxConnection.from_settings(self._settings)
        return self._connection

    def connection_after_refusal(self) -> ProxmoxConnection:
        """Reload because the connection was refused; return the current one."""
        self.reload_after_refusal()
        return self.connection()

    def reload_after_refusal(self) -> None:
        """Reload because a secret was refused, unless that was done within MIN_RELOAD_INTERVAL_S."""
        now = time.monotonic()
        with self._lock:
            if self._reloaded_at is not None and now - self._reloaded_at < MIN_RELOAD_INTERVAL_S:
                return
            self._reloaded_at = now
        self.reload()

    def reload(self) -> tuple[str, ...]:
        """Read the secrets again; return the variables whose values have changed."""
        self._stamps = _stamps(self._files)
        changed: tuple[str, ...] = ()
        try:
            fresh = self._read()
            changed = self._replace(fresh, FULCRUM_SECRETS)
            changed += self._replace(self._overlay(fresh) if self._overlay else fresh, PROXMOX_SECRETS)
        except SettingsError as error:
            log.warning("secrets_not_reloaded", reason=str(error).splitlines()[0], kept=not changed)
        except FulcrumError as error:
            log.warning("secrets_not_reloaded", reason=str(error), kept=not changed)
        if changed:
            log.info("secrets_reloaded", variables=list(changed))
        return changed

    def _replace(self, fresh: Settings, names: tuple[str, ...]) -> tuple[str, ...]:
        """Replace the named secrets by those of `fresh`; return the names of those that have changed."""
        redactor.add(*secret_values(fresh))
        values = {name.lower(): getattr(fresh, name.lower()) for name in names}
        with self._lock:
            before = self._settings
            made = before.model_copy(update=values)
            changed = tuple(name for name in names if getattr(before, name.lower()) != values[name.lower()])
            if not changed:
                return ()
            if names == PROXMOX_SECRETS:
                made.require_proxmox()  # a secret that was removed must not leave us without any
            else:
                made.require_fulcrum()
            self._settings = made
            if names == PROXMOX_SECRETS:
                self._connection = ProxmoxConnection.from_settings(made)
        return changed


def _secret_files(settings: Settings) -> tuple[Path, ...]:
    """Return the files that the secrets were read from."""
    names = (*FULCRUM_SECRETS, *PROXMOX_SECRETS)
    origins = {row.origin for row in describe(settings) if row.name in names}
    return tuple(path for path in map(Path, sorted(origins)) if path.is_absolute() and path.is_file())


def _stamps(files: tuple[Path, ...]) -> tuple[tuple[int, int, int] | None, ...]:
    """Return values that change with each file's content; a mounted secret is replaced through a link."""
    return tuple(_stamp(file) for file in files)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        facts = os.stat(file)
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_ino, facts.st_size
