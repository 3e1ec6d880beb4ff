"""Declares the settings for the database and for the folders that the agent uses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from executor.settings.declare import SettingsArea, setting
from executor.settings.sources import DEFAULT_SECRETS_DIR
from executor.settings.types import AnyPath, DatabaseUrl, ExistingFolder, Folder


def _default_data_dir() -> Path:
    """Return `/data`, the volume of our container image, if it is writable, else a folder in the user's home."""
    volume = Path("/data")
    if volume.is_dir() and os.access(volume, os.W_OK):
        return volume
    return Path("~/.local/share/agent-smith").expanduser()


def _default_database_url(settings: dict[str, Any]) -> str:
    """Return the URL of an SQLite file in the data folder."""
    return f"sqlite:///{settings['smith_data_dir'] / 'smith.db'}"


def _default_run_dir(settings: dict[str, Any]) -> Path:
    """Return a folder in `/dev/shm` if `/dev/shm` is writable, else a folder on disk.

    `/dev/shm` is in memory. It is preferred, because the files of a run contain secrets.
    """
    memory_folder = Path("/dev/shm")  # noqa: S108  the agent creates a folder in it, and sets and checks the folder's mode
    if memory_folder.is_dir() and os.access(memory_folder, os.W_OK):
        return memory_folder / f"agent-smith-{os.getuid()}"
    return Path(settings["smith_data_dir"]) / "run"


class FileSettings(SettingsArea):
    """Defines where the database, artifacts, secrets and playbooks are."""

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
        "folder for the files of running playbooks; it should be in memory, because these files contain secrets",
        example="/run/agent-smith",
        default_text="`/dev/shm/agent-smith-<uid>` if writable, else `run` in SMITH_DATA_DIR",
    )
    smith_secrets_dir: AnyPath = setting(
        DEFAULT_SECRETS_DIR,
        "folder with one file per secret; the name of the file is the name of the variable in lower case",
        example="/run/credentials/agent-smith.service",
    )
    smith_actions_path: ExistingFolder | None = setting(
        None,
        "folder with your own playbooks; a playbook in it replaces the built-in playbook of the same action",
        example="/etc/agent-smith/playbooks",
        default_text="none",
    )
