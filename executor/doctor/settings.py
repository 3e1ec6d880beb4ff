"""Checks that the settings are valid and complete, and that other users cannot read the secrets."""

from __future__ import annotations

import stat
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from executor.database.engine import sqlite_file
from executor.doctor.checks import Area, CheckResult, ResultFactory, command_line
from executor.errors import SettingsError
from executor.redaction import redactor
from executor.settings.display import setting_rows
from executor.settings.masking import secret_values
from executor.settings.settings import SECRET_SETTING_NAMES, Settings, load_settings

_RESULT_FACTORY = ResultFactory(Area.SETTINGS)
#: The origins of a setting that are not paths of files. `setting_rows` returns the origin of each setting. The origin
#: `argument` means that the value was passed to `Settings(…)` as a Python argument.
ORIGINS_WITHOUT_FILE = ("default", "environment", "argument")
#: The bits in the mode of a file that grant its group or other users any access.
ACCESS_BY_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def check_settings(env_file: Path | None, environ: Mapping[str, str]) -> Generator[CheckResult, None, Settings | None]:
    """Check the settings, and return them. Return None if the settings cannot be read."""
    try:
        settings = load_settings(env_file=env_file, environ=environ)
    except SettingsError as error:
        for line in str(error).splitlines():
            yield _RESULT_FACTORY.fail("readable", line)
        return None
    redactor.add(*secret_values(settings))
    yield from _check_completeness(settings)
    yield from _check_secrets(settings)
    return settings


def _check_completeness(settings: Settings) -> Iterator[CheckResult]:
    """Check that all required settings are set.

    With `smith_remote_config`, the settings for Proxmox are not required, because FulcrumCore provides them.
    """
    checks_that_raise = [settings.require_fulcrum_settings]
    if not settings.smith_remote_config:
        checks_that_raise.append(settings.require_proxmox_settings)
    problems: list[str] = []
    for raise_if_missing in checks_that_raise:
        try:
            raise_if_missing()
        except SettingsError as error:
            problems += str(error).splitlines()
    for problem in problems:
        yield _RESULT_FACTORY.fail("complete", problem)
    if not problems:
        yield _RESULT_FACTORY.ok(
            "complete", "FulcrumCore provides the settings for Proxmox" if settings.smith_remote_config else ""
        )


def _check_secrets(settings: Settings) -> Iterator[CheckResult]:
    """Warn about secrets in files that other users can read, and about secrets in environment variables.

    These are warnings, not failures, because some container platforms mount all secret files as readable by all users.
    """
    origin_by_name = {row.name: row.origin for row in setting_rows(settings)}
    files = list(
        dict.fromkeys(
            origin_by_name[name] for name in SECRET_SETTING_NAMES if origin_by_name[name] not in ORIGINS_WITHOUT_FILE
        )
    )
    files_readable_by_others = [file for file in files if _permission_bits(file) & ACCESS_BY_OTHERS]
    if files_readable_by_others:
        files_with_modes = ", ".join(f"{file} ({_permission_bits(file):04o})" for file in files_readable_by_others)
        remedies = [command_line("chmod", "600", Path(file).expanduser()) for file in files_readable_by_others]
        yield _RESULT_FACTORY.warn(
            "secret files", f"other users of this machine can read {files_with_modes}", *remedies
        )
    elif files:
        yield _RESULT_FACTORY.ok("secret files", f"{len(files)} files with secrets, readable by this user only")
    else:
        yield _RESULT_FACTORY.ok("secret files", "no setting gets a secret from a file")
    names_in_environment = [
        name
        for name in SECRET_SETTING_NAMES
        if origin_by_name[name] == "environment" and _is_value_secret(name, settings)
    ]
    if names_in_environment:
        text = f"{', '.join(names_in_environment)} in the environment, which /proc shows to all processes of this user"
        remedies = [f"{name}_FILE=<file with the secret>; unset {name}" for name in names_in_environment]
        yield _RESULT_FACTORY.warn("secrets", text, *remedies)


def _is_value_secret(name: str, settings: Settings) -> bool:
    """Return whether the value of this secret setting is a secret. The URL of a SQLite file is not a secret."""
    return name != "SMITH_DATABASE_URL" or sqlite_file(settings.smith_database_url) is None


def _permission_bits(file: str) -> int:
    """Return the permission bits of a file."""
    try:
        return stat.S_IMODE(Path(file).expanduser().stat().st_mode)
    except OSError:
        return 0  # the file was removed after the settings were read
