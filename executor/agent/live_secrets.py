"""Secrets that may change while we run: read again on HUP, before a run whose file is newer, and when one is refused.

What is read again is what the settings read at the start (files, mounted secrets, environment, `.env`, FulcrumCore's
configuration), but only the three secrets below are taken from it: everything else needs a restart. What cannot be used
is told and changes nothing. An old value stays masked, because text that holds it may still come.
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

#: A refused secret makes us look again, but no more often than this: it may stay refused for days.
LOOK_INTERVAL_S = 10.0
#: What is taken over, by the name of its variable.
OF_FULCRUM = ("FULCRUM_API_TOKEN",)
OF_PROXMOX = ("PROXMOX_TOKEN_SECRET", "PROXMOX_PASSWORD")


class LiveSecrets:
    """Holds the secrets in force. Any thread may ask; whoever asks gets all of one moment."""

    def __init__(self, settings: Settings, read: Callable[[], Settings]) -> None:
        self._settings = settings
        self._read = read
        self._overlay: Callable[[Settings], Settings] | None = None
        self._lock = threading.Lock()
        self._looked_at: float | None = None
        self._files = _secret_files(settings)
        self._stamps = _stamps(self._files)
        self._connection = ProxmoxConnection.from_settings(settings) if settings.proxmox_host else None

    def overlay_with(self, settings: Settings, overlay: Callable[[Settings], Settings]) -> None:
        """Go on from settings that FulcrumCore has a part in, and ask it again, too, from now on.

        `overlay` raises FulcrumError or SettingsError when FulcrumCore does not give its part.
        """
        self._settings, self._overlay = settings, overlay
        self._connection = ProxmoxConnection.from_settings(settings)

    def fulcrum_token(self) -> str:
        """Return the agent's token."""
        return self._settings.fulcrum_api_token.get_secret_value()

    def credentials(self) -> dict[str, Any]:
        """Return what a run's modules log in with; a file that has changed since is read first."""
        if _stamps(self._files) != self._stamps:
            self.reload()
        return module_credentials(self._settings)

    def connection(self) -> ProxmoxConnection:
        """Return how Proxmox is reached; the same object as long as nothing changes."""
        if self._connection is None:
            self._settings.require_proxmox()
            self._connection = ProxmoxConnection.from_settings(self._settings)
        return self._connection

    def renewed_connection(self) -> ProxmoxConnection:
        """Return the connection in force after one was refused."""
        self.look_again()
        return self.connection()

    def look_again(self) -> None:
        """Read again because one was refused, unless that has been done a moment ago."""
        now = time.monotonic()
        with self._lock:
            if self._looked_at is not None and now - self._looked_at < LOOK_INTERVAL_S:
                return
            self._looked_at = now
        self.reload()

    def reload(self) -> tuple[str, ...]:
        """Read again now; return the variables whose values have changed."""
        self._stamps = _stamps(self._files)
        changed: tuple[str, ...] = ()
        try:
            fresh = self._read()
            changed = self._take(fresh, OF_FULCRUM)
            changed += self._take(self._overlay(fresh) if self._overlay else fresh, OF_PROXMOX)
        except SettingsError as error:
            log.warning("secrets_not_reloaded", reason=str(error).splitlines()[0], kept=not changed)
        except FulcrumError as error:
            log.warning("secrets_not_reloaded", reason=str(error), kept=not changed)
        if changed:
            log.info("secrets_reloaded", variables=list(changed))
        return changed

    def _take(self, fresh: Settings, names: tuple[str, ...]) -> tuple[str, ...]:
        """Take some secrets over; return the names of those that are new."""
        redactor.add(*secret_values(fresh))
        values = {name.lower(): getattr(fresh, name.lower()) for name in names}
        with self._lock:
            before = self._settings
            made = before.model_copy(update=values)
            changed = tuple(name for name in names if getattr(before, name.lower()) != values[name.lower()])
            if not changed:
                return ()
            if names == OF_PROXMOX:
                made.require_proxmox()  # one that was taken away must not leave us with none
            else:
                made.require_fulcrum()
            self._settings = made
            if names == OF_PROXMOX:
                self._connection = ProxmoxConnection.from_settings(made)
        return changed


def _secret_files(settings: Settings) -> tuple[Path, ...]:
    """The files that secrets came from."""
    names = (*OF_FULCRUM, *OF_PROXMOX)
    origins = {row.origin for row in describe(settings) if row.name in names}
    return tuple(path for path in map(Path, sorted(origins)) if path.is_absolute() and path.is_file())


def _stamps(files: tuple[Path, ...]) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes with a file's content; a mounted secret is replaced by way of a link."""
    return tuple(_stamp(file) for file in files)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        facts = os.stat(file)
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_ino, facts.st_size
