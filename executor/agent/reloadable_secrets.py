"""Holds the secrets, and reloads them without a restart of the agent.

A reload happens on HUP, before a run when the file of a secret has changed, and when a server refuses a secret. It
reads all sources of the settings (files, mounted secrets, environment, `.env`, FulcrumCore's configuration), but
replaces only the three secrets below: a change of any other setting needs a restart. When a new value is invalid, the
reload logs a warning and keeps the old values. Old values stay redacted, because later output may still contain them.
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

#: Minimum time between two reloads that follow the refusal of a secret. A server may refuse a secret for days, and
#: each refused request would otherwise cause a reload.
MIN_RELOAD_INTERVAL_S = 10.0
#: The variables that a reload replaces.
FULCRUM_SECRETS = ("FULCRUM_API_TOKEN",)
PROXMOX_SECRETS = ("PROXMOX_TOKEN_SECRET", "PROXMOX_PASSWORD")


class ReloadableSecrets:
    """Holds the current secrets. Thread-safe: one call never mixes old and new values."""

    def __init__(self, settings: Settings, load: Callable[[], Settings]) -> None:
        self._settings = settings
        self._load = load
        self._add_remote: Callable[[Settings], Settings] | None = None
        self._lock = threading.Lock()
        self._reloaded_at: float | None = None
        self._files = _secret_files(settings)
        self._file_versions = _file_versions(self._files)
        self._connection = ProxmoxConnection.from_settings(settings) if settings.proxmox_host else None

    def use_remote_settings(self, settings: Settings, add_remote: Callable[[Settings], Settings]) -> None:
        """Use `settings`, which include FulcrumCore's configuration, and read that configuration at each reload.

        `add_remote` returns the given settings with FulcrumCore's configuration added. It raises FulcrumError or
        SettingsError when that configuration cannot be read.
        """
        self._settings, self._add_remote = settings, add_remote
        self._connection = ProxmoxConnection.from_settings(settings)

    def fulcrum_token(self) -> str:
        """Return the agent's token for FulcrumCore."""
        return self._settings.fulcrum_api_token.get_secret_value()

    def credentials(self) -> dict[str, Any]:
        """Return Proxmox's credentials for the modules of a run. Reload first if the file of a secret has changed."""
        if _file_versions(self._files) != self._file_versions:
            self.reload()
        return module_credentials(self._settings)

    def connection(self) -> ProxmoxConnection:
        """Return the settings of the Proxmox connection. The returned object stays the same until a secret changes."""
        if self._connection is None:
            self._settings.require_proxmox()
            self._connection = ProxmoxConnection.from_settings(self._settings)
        return self._connection

    def connection_after_refusal(self) -> ProxmoxConnection:
        """Reload because Proxmox refused the credentials; return the current connection."""
        self.reload_after_refusal()
        return self.connection()

    def reload_after_refusal(self) -> None:
        """Reload because a secret was refused, unless the last such reload was less than MIN_RELOAD_INTERVAL_S ago."""
        now = time.monotonic()
        with self._lock:
            if self._reloaded_at is not None and now - self._reloaded_at < MIN_RELOAD_INTERVAL_S:
                return
            self._reloaded_at = now
        self.reload()

    def reload(self) -> tuple[str, ...]:
        """Read the secrets again; return the variables whose values have changed."""
        self._file_versions = _file_versions(self._files)
        changed: tuple[str, ...] = ()
        try:
            new = self._load()
            changed = self._replace(new, FULCRUM_SECRETS)
            changed += self._replace(self._add_remote(new) if self._add_remote else new, PROXMOX_SECRETS)
        except SettingsError as error:
            log.warning("secrets_not_reloaded", reason=str(error).splitlines()[0], kept=not changed)
        except FulcrumError as error:
            log.warning("secrets_not_reloaded", reason=str(error), kept=not changed)
        if changed:
            log.info("secrets_reloaded", variables=list(changed))
        return changed

    def _replace(self, new: Settings, names: tuple[str, ...]) -> tuple[str, ...]:
        """Replace the secrets in `names` by the values in `new`; return the names whose values have changed."""
        redactor.add(*secret_values(new))
        values = {name.lower(): getattr(new, name.lower()) for name in names}
        with self._lock:
            old = self._settings
            merged = old.model_copy(update=values)
            changed = tuple(name for name in names if getattr(old, name.lower()) != values[name.lower()])
            if not changed:
                return ()
            # Raises SettingsError when the new settings have no secret; the old secret is kept then.
            if names == PROXMOX_SECRETS:
                merged.require_proxmox()
            else:
                merged.require_fulcrum()
            self._settings = merged
            if names == PROXMOX_SECRETS:
                self._connection = ProxmoxConnection.from_settings(merged)
        return changed


def _secret_files(settings: Settings) -> tuple[Path, ...]:
    """Return the files from which the secrets were read."""
    names = (*FULCRUM_SECRETS, *PROXMOX_SECRETS)
    origins = {row.origin for row in describe(settings) if row.name in names}
    return tuple(path for path in map(Path, sorted(origins)) if path.is_absolute() and path.is_file())


def _file_versions(files: tuple[Path, ...]) -> tuple[tuple[int, int, int] | None, ...]:
    """Return a version for each file. The version of a file changes when the file is written or replaced."""
    return tuple(_file_version(file) for file in files)


def _file_version(file: Path) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(file)  # follows links: Kubernetes replaces a mounted secret by changing a link
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
