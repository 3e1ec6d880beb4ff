"""Declares the settings for the database and for the folders that the agent uses."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from executor.settings.declare import SettingsArea, setting
from executor.settings.sources import DEFAULT_SECRETS_DIR
from executor.settings.types import AnyPath, DatabaseUrl, ExistingFolder, Folder


def _default_data_dir() -> Path:
    """Return the folder `/data` of our container image if it is writable, else a folder in the user's home."""
    volume = Path("/data")
    if volume.is_dir() and os.access(volume, os.W_OK):
        return volume
    return Path("~/.local/share/agent-smith").expanduser()


def _default_database_url(settings: dict[str, Any]) -> str:
    """Return the URL of an SQLite file in the data folder."""
    return f"sqlite:///{settings['smith_data_dir'] / 'smith.db'}"


def _default_run_dir(settings: dict[str, Any]) -> Path:
    """Return the default of SMITH_RUN_DIR: a folder in memory, because the files of a run contain secrets.

    The returned folder is in the folder XDG_RUNTIME_DIR if only this user can use XDG_RUNTIME_DIR, else in `/dev/shm`.
    The name of the returned folder contains a hash of the data folder's path, so that several agents of one user use
    different folders. The hash is short, because the returned folder contains Unix sockets, and Linux limits the length
    of their paths.
    """
    path_hash = hashlib.sha256(os.fsencode(settings["smith_data_dir"])).hexdigest()[:8]
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    if _is_private_folder(runtime_dir):
        return Path(runtime_dir) / f"agent-smith-{path_hash}"
    memory_folder = Path("/dev/shm")  # noqa: S108  the agent checks the owner and the mode of the returned folder
    return memory_folder / f"agent-smith-{os.getuid()}-{path_hash}"


def _is_private_folder(path: str) -> bool:
    """Return whether `path` is the absolute path of a folder that only this user can use."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return False
    is_private = status.st_uid == os.getuid() and not status.st_mode & 0o077
    return os.path.isabs(path) and stat.S_ISDIR(status.st_mode) and is_private and os.access(path, os.W_OK)


class FileSettings(SettingsArea):
    """Defines where the database, artifacts, secrets, files of running playbooks and the provider's playbooks are.

    A `Folder` need not exist, an `ExistingFolder` must exist, and an `AnyPath` may be a folder, a file, or missing.
    """

    smith_data_dir: Folder = setting(
        _default_data_dir,
        "folder for the database and the artifacts of runs",
        example="/var/lib/agent-smith",
        default_text="`/data` if it is writable, else `~/.local/share/agent-smith`",
    )
    smith_database_url: DatabaseUrl = setting(
        _default_database_url,
        "URL of the database: an SQLite file, or PostgreSQL if agents on several machines share the jobs",
        example="postgresql://smith:password@db.example.net/smith",
        default_text="`smith.db` in SMITH_DATA_DIR",
        repr=False,  # the URL may contain a password
    )
    smith_run_dir: Folder = setting(
        _default_run_dir,
        "folder for the files of running playbooks; it should be in memory, because these files contain secrets; "
        "the <hash> in the default is computed from SMITH_DATA_DIR",
        example="/run/agent-smith",
        default_text="`$XDG_RUNTIME_DIR/agent-smith-<hash>`, else `/dev/shm/agent-smith-<uid>-<hash>`",
    )
    smith_secrets_dir: AnyPath = setting(
        DEFAULT_SECRETS_DIR,
        "folder with one file per secret setting; each file has the name of its setting, in lower case",
        example="/run/credentials/agent-smith.service",
    )
    smith_actions_path: ExistingFolder | None = setting(
        None,
        "folder with your own playbooks; a playbook in it replaces the built-in playbook of the same action",
        example="/etc/agent-smith/playbooks",
        default_text="none",
    )
