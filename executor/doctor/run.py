"""Runs all preflight checks of `smith doctor`, and skips an area if its settings are missing."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from executor.doctor.checks import Area, Check, CheckFactory
from executor.doctor.fulcrum import check_fulcrum
from executor.doctor.machine import check_database, check_machine
from executor.doctor.proxmox import check_proxmox
from executor.doctor.settings import check_settings
from executor.errors import SettingsError
from executor.settings.settings import Settings


def run_checks(*, env_file: Path | None = Path(".env"), environ: Mapping[str, str] | None = None) -> Iterator[Check]:
    """Run all checks and yield each result.

    The settings are checked first, because all other checks need them. The checks change nothing, except that a CA
    bundle in the agent's configuration in FulcrumCore is written to a file.
    """
    settings = yield from check_settings(env_file, os.environ if environ is None else environ)
    if settings is None:
        for area in (Area.FULCRUM, Area.PROXMOX, Area.DATABASE, Area.MACHINE):
            yield CheckFactory(area).skip("all", "the settings cannot be read")
        return
    effective = yield from _check_fulcrum(settings)
    yield from _check_proxmox(effective)
    yield from check_database(settings)
    yield from check_machine(settings)


def _check_fulcrum(settings: Settings) -> Generator[Check, None, Settings | None]:
    try:
        settings.require_fulcrum()
    except SettingsError:
        yield CheckFactory(Area.FULCRUM).skip("all", "settings are missing")
        return None if settings.smith_remote_config else settings
    return (yield from check_fulcrum(settings))


def _check_proxmox(settings: Settings | None) -> Iterator[Check]:
    check = CheckFactory(Area.PROXMOX)
    if settings is None:
        yield check.skip("all", "FulcrumCore's configuration could not be read")
        return
    try:
        settings.require_proxmox()
    except SettingsError:
        yield check.skip("all", "settings are missing")
        return
    yield from check_proxmox(settings)
