"""Checks that the settings are valid and complete, and that other users cannot read the secrets."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from executor.doctor.checks import Area, Check, CheckFactory
from executor.errors import SettingsError
from executor.redaction import redactor
from executor.settings.display import describe
from executor.settings.masking import secret_values
from executor.settings.settings import SECRETS, Settings, load_settings

_CHECK = CheckFactory(Area.SETTINGS)
#: `describe` returns the origin of each setting: the path of a file, or one of these words.
NOT_FILES = ("default", "environment", "given")


def check_settings(env_file: Path | None, environ: Mapping[str, str]) -> Generator[Check, None, Settings | None]:
    """Check the settings. Return them, or None when they cannot be read."""
    try:
        settings = load_settings(env_file=env_file, environ=environ)
    except SettingsError as error:
        for line in str(error).splitlines():
            yield _CHECK.fail("readable", line)
        return None
    redactor.add(*secret_values(settings))
    yield from _completeness(settings)
    yield from _secret_files(settings)
    return settings


def _completeness(settings: Settings) -> Iterator[Check]:
    required = [settings.require_fulcrum]
    if not settings.smith_remote_config:  # with it, the agent's configuration in FulcrumCore has the Proxmox settings
        required.append(settings.require_proxmox)
    lines: list[str] = []
    for require in required:
        try:
            require()
        except SettingsError as error:
            lines += str(error).splitlines()
    for line in lines:
        yield _CHECK.fail("complete", line)
    if not lines:
        yield _CHECK.ok("complete", "FulcrumCore provides the other settings" if settings.smith_remote_config else "")


def _secret_files(settings: Settings) -> Iterator[Check]:
    """Warn about secrets that other users or processes can read: the modes of files, and environment variables.

    This is not a failure, because a container platform may mount secret files as readable by all users.
    """
    origins = {row.name: row.origin for row in describe(settings)}
    files = {origins[name]: name for name in SECRETS if origins[name] not in NOT_FILES}
    readable = [file for file in files if _mode(file) & 0o077]
    if readable:
        text = "other users of this machine can read " + ", ".join(f"{file} ({_mode(file):04o})" for file in readable)
        yield _CHECK.warn("secret files", text, *(f"chmod 600 {file}" for file in readable))
    else:
        yield _CHECK.ok("secret files", f"{len(files)} in use, readable by this user only" if files else "none in use")
    if in_environment := [name for name in SECRETS if origins[name] == "environment"]:
        text = f"{', '.join(in_environment)} in the environment, which /proc shows to all processes of this user"
        yield _CHECK.warn("secrets", text, *(f"{name}_FILE=/path/to/a/file" for name in in_environment))


def _mode(file: str) -> int:
    try:
        return Path(file).expanduser().stat().st_mode & 0o7777
    except OSError:
        return 0  # the file was removed after the settings were read
