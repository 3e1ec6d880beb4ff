"""The order of the looks: each area stands on those before it."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from executor.doctor import (
    fulcrum as of_fulcrum,
)
from executor.doctor import (
    machine as of_machine,
)
from executor.doctor import (
    proxmox as of_proxmox,
)
from executor.doctor import (
    settings as of_settings,
)
from executor.doctor.checks import Area, Check, Maker
from executor.errors import SettingsError
from executor.settings.settings import Settings


def examine(*, env_file: Path | None = Path(".env"), environ: Mapping[str, str] | None = None) -> Iterator[Check]:
    """Look at everything, and yield what was found as it is found. Changes nothing, but for FulcrumCore's CA file."""
    settings = yield from of_settings.look(env_file, os.environ if environ is None else environ)
    if settings is None:
        for area in (Area.FULCRUM, Area.PROXMOX, Area.DATABASE, Area.MACHINE):
            yield Maker(area).skip("all", "the settings cannot be read")
        return
    in_force = yield from _fulcrum(settings)
    yield from _proxmox(in_force)
    yield from of_machine.look_at_database(settings)
    yield from of_machine.look_at_machine(settings)


def _fulcrum(settings: Settings) -> Generator[Check, None, Settings | None]:
    try:
        settings.require_fulcrum()
    except SettingsError:
        yield Maker(Area.FULCRUM).skip("all", "settings are missing")
        return None if settings.smith_remote_config else settings
    return (yield from of_fulcrum.look(settings))


def _proxmox(settings: Settings | None) -> Iterator[Check]:
    maker = Maker(Area.PROXMOX)
    if settings is None:
        yield maker.skip("all", "FulcrumCore's configuration could not be read")
        return
    try:
        settings.require_proxmox()
    except SettingsError:
        yield maker.skip("all", "settings are missing")
        return
    yield from of_proxmox.look(settings)
