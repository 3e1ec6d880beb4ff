"""Runs all preflight checks of `smith doctor`.

If settings for FulcrumCore are missing, the checks of FulcrumCore are skipped, and one result with the name `all`
replaces their results. The checks of Proxmox are skipped in the same way if settings for Proxmox are missing.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from executor.doctor.checks import Area, CheckResult, ResultFactory
from executor.doctor.database import check_database
from executor.doctor.fulcrum import check_fulcrum
from executor.doctor.machine import check_machine
from executor.doctor.proxmox import check_proxmox
from executor.doctor.settings import check_settings
from executor.errors import SettingsError
from executor.settings.settings import Settings


def run_checks(
    *, env_file: Path | None = Path(".env"), environ: Mapping[str, str] | None = None
) -> Iterator[CheckResult]:
    """Run all checks and yield each result.

    The settings come from `environ` (None: the environment of this process) and `env_file` (None: no file is read).
    The settings are checked first, because all other checks need them. If `smith_remote_config` is set, the agent's
    configuration in FulcrumCore overrides these settings. The settings with these overrides are the effective settings.
    The checks change nothing, except that a CA bundle in the agent's configuration is written to a file.
    """
    settings = yield from check_settings(env_file, os.environ if environ is None else environ)
    if settings is None:
        for area in (Area.FULCRUM, Area.PROXMOX, Area.DATABASE, Area.MACHINE):
            yield ResultFactory(area).skip("all", "the settings cannot be read")
        return
    effective_settings = yield from _check_fulcrum_if_configured(settings)
    yield from _check_proxmox_if_configured(effective_settings)
    # The configuration in FulcrumCore contains no setting that the following checks use.
    yield from check_database(settings)
    yield from check_machine(settings)


def _check_fulcrum_if_configured(settings: Settings) -> Generator[CheckResult, None, Settings | None]:
    """Check FulcrumCore, and return the effective settings.

    Returns None if `smith_remote_config` is set, but the agent's configuration in FulcrumCore cannot be read.
    """
    try:
        settings.require_fulcrum_settings()
    except SettingsError:
        yield ResultFactory(Area.FULCRUM).skip("all", "settings for FulcrumCore are missing")
        return None if settings.smith_remote_config else settings
    return (yield from check_fulcrum(settings))


def _check_proxmox_if_configured(settings: Settings | None) -> Iterator[CheckResult]:
    factory = ResultFactory(Area.PROXMOX)
    if settings is None:
        yield factory.skip("all", "the agent's configuration in FulcrumCore could not be read")
        return
    try:
        settings.require_proxmox_settings()
    except SettingsError:
        yield factory.skip("all", "settings for Proxmox are missing")
        return
    yield from check_proxmox(settings)
