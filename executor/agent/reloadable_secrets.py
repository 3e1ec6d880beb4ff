"""Holds the secrets for FulcrumCore and Proxmox, and reloads them without a restart of the agent.

A reload happens on the signal HUP, before a run when the file of a secret has changed, and when a server refuses a
secret. A reload reads all sources of the settings (files, mounted secrets, environment, `.env` and, if
SMITH_REMOTE_CONFIG is true, the settings that FulcrumCore holds for the agent), but replaces only FULCRUM_SECRETS and
PROXMOX_SECRETS. A change of any other setting needs a restart.
A reload replaces FULCRUM_SECRETS first, then PROXMOX_SECRETS. At an error, it logs a warning and keeps the old values
that it has not replaced yet. Old values are still redacted after a reload, because later output may contain them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from executor.errors import FulcrumError, SettingsError
from executor.fulcrum import remote_config
from executor.log import get_logger
from executor.proxmox.connection import ProxmoxConnection
from executor.redaction import redactor
from executor.runs.private_folder import ansible_credentials
from executor.settings.display import setting_rows
from executor.settings.masking import secret_values
from executor.settings.settings import Settings

log = get_logger(__name__)

#: Minimum time between two reloads that follow the refusal of a secret. A server may refuse a secret for days, and
#: each refused request would otherwise cause a reload.
MIN_RELOAD_INTERVAL_S = 10.0
#: The settings that a reload replaces, as names of environment variables.
FULCRUM_SECRETS = ("FULCRUM_API_TOKEN",)
PROXMOX_SECRETS = ("PROXMOX_TOKEN_SECRET", "PROXMOX_PASSWORD")
#: The settings that determine which server gets FULCRUM_SECRETS, as names of attributes of `Settings`.
FULCRUM_SERVER_SETTINGS = ("fulcrum_api_url", "fulcrum_ca_bundle", "fulcrum_verify_tls")

#: Modification time in ns, inode and size of a file.
_FileVersion = tuple[int, int, int]


class ReloadableSecrets:
    """Holds the current secrets for all threads. No call returns a mixture of old and new values."""

    def __init__(self, settings: Settings, load_settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._load_settings = load_settings
        self._add_remote_settings: Callable[[Settings], Settings] | None = None
        self._lock = threading.Lock()
        self._last_refusal_reload_at: float | None = None  #: monotonic time of the last reload after a refusal
        self._secret_files = _find_secret_files(settings)
        self._file_versions = _read_versions(self._secret_files)
        self._connection = ProxmoxConnection.from_settings(settings) if settings.proxmox_host else None

    def use_remote_settings(self, settings: Settings, add_remote_settings: Callable[[Settings], Settings]) -> None:
        """Use `settings`, which include the settings from FulcrumCore. Each reload calls `add_remote_settings`.

        `add_remote_settings` reads the settings from FulcrumCore, and returns its argument with these settings added.
        It raises FulcrumError or SettingsError when they cannot be read.
        """
        self._settings, self._add_remote_settings = settings, add_remote_settings
        self._connection = ProxmoxConnection.from_settings(settings)

    def fulcrum_token(self) -> str:
        """Return the agent's token for FulcrumCore."""
        return self._settings.fulcrum_api_token.get_secret_value()

    def proxmox_credentials(self) -> dict[str, Any]:
        """Return the Proxmox credentials for a run's Ansible modules. Reload first if a secret's file has changed."""
        if _read_versions(self._secret_files) != self._file_versions:
            self.reload()
        return ansible_credentials(self._settings)

    def proxmox_connection(self) -> ProxmoxConnection:
        """Return the settings of the Proxmox connection: the same object until a secret of Proxmox changes."""
        if self._connection is None:
            self._settings.require_proxmox_settings()
            self._connection = ProxmoxConnection.from_settings(self._settings)
        return self._connection

    def reload_proxmox_connection(self) -> ProxmoxConnection:
        """Call `reload_after_refused_secret` because Proxmox refused the credentials; return the current connection."""
        self.reload_after_refused_secret()
        return self.proxmox_connection()

    def reload_after_refused_secret(self) -> None:
        """Reload because a secret was refused, unless the last such reload was less than MIN_RELOAD_INTERVAL_S ago."""
        now = time.monotonic()
        with self._lock:
            last_at = self._last_refusal_reload_at
            if last_at is not None and now - last_at < MIN_RELOAD_INTERVAL_S:
                return
            self._last_refusal_reload_at = now
        self.reload()

    def reload(self) -> tuple[str, ...]:
        """Read the secrets again; return the names of the secrets whose values have changed."""
        self._file_versions = _read_versions(self._secret_files)
        changed_names: tuple[str, ...] = ()
        failure_reason = ""
        try:
            new_settings = self._load_settings()
            # The token for FulcrumCore is replaced first, because the settings from FulcrumCore are read with it.
            changed_names = self._replace_secrets(FULCRUM_SECRETS, new_settings)
            if self._add_remote_settings:
                new_settings = self._add_remote_settings(new_settings)
            changed_names += self._replace_secrets(PROXMOX_SECRETS, new_settings)
        except SettingsError as error:
            failure_reason = str(error).splitlines()[0]
        except FulcrumError as error:
            failure_reason = str(error)
        if failure_reason:
            log.warning("secrets_not_reloaded", reason=failure_reason, all_old_values_kept=not changed_names)
        if changed_names:
            log.info("secrets_reloaded", variables=list(changed_names))
        return changed_names

    def _replace_secrets(self, names: tuple[str, ...], new_settings: Settings) -> tuple[str, ...]:
        """Replace the named secrets by those in `new_settings`; return the names of the secrets that have changed.

        `names` is FULCRUM_SECRETS or PROXMOX_SECRETS. Raises SettingsError and keeps the old secrets when
        `new_settings` contain none of the named secrets, or when `new_settings` name another server for the new
        secrets.
        """
        redactor.add(*secret_values(new_settings))
        new_values = {name.lower(): getattr(new_settings, name.lower()) for name in names}
        with self._lock:
            old_settings = self._settings
            merged_settings = old_settings.model_copy(update=new_values)
            changed_names = tuple(
                name for name in names if getattr(old_settings, name.lower()) != new_values[name.lower()]
            )
            if not changed_names:
                return ()
            _raise_if_server_differs(old_settings, new_settings, names)
            if names == PROXMOX_SECRETS:
                merged_settings.require_proxmox_settings()
            else:
                merged_settings.require_fulcrum_settings()
            self._settings = merged_settings
            if names == PROXMOX_SECRETS:
                self._connection = ProxmoxConnection.from_settings(merged_settings)
        return changed_names


def _raise_if_server_differs(old_settings: Settings, new_settings: Settings, names: tuple[str, ...]) -> None:
    """Raise SettingsError if the secrets in `new_settings` are for another server than the secrets in `old_settings`.

    The agent uses the server of `old_settings` until its restart.
    """
    server_settings = remote_config.PROXMOX_SERVER_SETTINGS if names == PROXMOX_SECRETS else FULCRUM_SERVER_SETTINGS
    changed_setting_names = [
        name.upper() for name in server_settings if getattr(old_settings, name) != getattr(new_settings, name)
    ]
    if changed_setting_names:
        raise SettingsError(f"{', '.join(changed_setting_names)} changed together with the secret: restart the agent")


def _find_secret_files(settings: Settings) -> tuple[Path, ...]:
    """Return the files from which the secrets were read."""
    names = (*FULCRUM_SECRETS, *PROXMOX_SECRETS)
    # An origin is the path of a file, or the name of another source such as the environment.
    origins = {row.origin for row in setting_rows(settings) if row.name in names}
    return tuple(path for path in map(Path, sorted(origins)) if path.is_absolute() and path.is_file())


def _read_versions(files: tuple[Path, ...]) -> tuple[_FileVersion | None, ...]:
    """Return the versions of the files, None for a missing file. A new version means that the file has changed."""
    return tuple(_read_version(file) for file in files)


def _read_version(file: Path) -> _FileVersion | None:
    try:
        stat = os.stat(file)  # follows links: Kubernetes replaces a mounted secret by changing a link
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
