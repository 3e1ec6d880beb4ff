"""Settings: complete, readable, and their secrets nobody else's."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from executor.doctor.checks import Area, Check, Maker
from executor.errors import SettingsError
from executor.redaction import redactor
from executor.settings.display import describe
from executor.settings.masking import secret_values
from executor.settings.settings import SECRETS, Settings, load_settings

_MAKER = Maker(Area.SETTINGS)
#: Where a value came from, when it was no file.
NOT_FILES = ("default", "environment", "given")


def look(env_file: Path | None, environ: Mapping[str, str]) -> Generator[Check, None, Settings | None]:
    """Look at the settings; returns them, None when they cannot be read."""
    try:
        settings = load_settings(env_file=env_file, environ=environ)
    except SettingsError as error:
        for line in str(error).splitlines():
            yield _MAKER.fail("readable", line)
        return None
    redactor.add(*secret_values(settings))
    yield from _completeness(settings)
    yield from _secret_files(settings)
    return settings


def _completeness(settings: Settings) -> Iterator[Check]:
    requires = (settings.require_fulcrum, settings.require_proxmox)
    lines: list[str] = []
    for require in requires[:1] if settings.smith_remote_config else requires:
        try:
            require()
        except SettingsError as error:
            lines += str(error).splitlines()
    for line in lines:
        yield _MAKER.fail("complete", line)
    if not lines:
        yield _MAKER.ok("complete", "FulcrumCore adds its own" if settings.smith_remote_config else "")


def _secret_files(settings: Settings) -> Iterator[Check]:
    """Look at the files that secrets came from. Mounted ones may be readable by design, so this only warns."""
    origins = {row.name: row.origin for row in describe(settings)}
    files = {origins[name]: name for name in SECRETS if origins[name] not in NOT_FILES}
    open_ones = [file for file in files if _mode(file) & 0o077]
    if open_ones:
        text = "others on this machine may read " + ", ".join(f"{file} ({_mode(file):04o})" for file in open_ones)
        yield _MAKER.warn("secret files", text, *(f"chmod 600 {file}" for file in open_ones))
    else:
        yield _MAKER.ok("secret files", f"{len(files)} read, nobody else's" if files else "none is used")
    if shown := [name for name in SECRETS if origins[name] == "environment"]:
        text = f"{', '.join(shown)} stand in the environment, which /proc shows to this user's processes"
        yield _MAKER.warn("secrets", text, *(f"{name}_FILE=/path/to/a/file" for name in shown))


def _mode(file: str) -> int:
    try:
        return Path(file).expanduser().stat().st_mode & 0o7777
    except OSError:
        return 0  # it was read a moment ago; gone now is nobody's to read
