"""Overrides settings with the configuration that FulcrumCore holds for the agent, if SMITH_REMOTE_CONFIG is true.

Each member of the configuration is checked as the setting that it stands for; an invalid member raises SettingsError.
Unknown and empty members are ignored. While FulcrumCore or its vault does not answer, the request is retried, because
an outage must not make the agent's start fail.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

from pydantic import ValidationError

from executor.errors import FulcrumError, SettingsError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.remote_members import FROM_FULCRUMCORE, MEMBERS, MemberReader
from executor.log import get_logger
from executor.processes.progress import Progress
from executor.settings.problems import problems_in
from executor.settings.settings import Settings, overlay

log = get_logger(__name__)

#: `smith config show` names this as the origin of a setting that FulcrumCore's configuration sets.
ORIGIN = "FulcrumCore"
MIN_BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0


def wait_for_remote_settings(
    settings: Settings,
    fulcrum: FulcrumClient,
    *,
    sleep: Callable[[float], None] | None = None,
    on_wait: Callable[[str], None] = lambda _reason: None,
) -> Settings:
    """Return the settings with FulcrumCore's configuration applied; retries until FulcrumCore answers.

    `on_wait` is called with the reason of each failed attempt. Raises SettingsError naming every invalid member, and
    every variable that is still missing.
    """
    if not settings.smith_remote_config:
        return settings
    backoff = _Backoff(sleep or _sleep_with_progress, on_wait)
    while True:
        try:
            agent = fulcrum.get_self()
            values = MemberReader(settings, fulcrum).values(agent)
        except FulcrumError as error:  # also for a missing secret (404), which an administrator may be replacing
            backoff.wait_after(error)
            continue
        return _apply(settings, values)


def fetch_remote_settings(settings: Settings, fulcrum: FulcrumClient) -> Settings:
    """Return the settings with FulcrumCore's configuration applied, after one attempt.

    Raises FulcrumError if the attempt fails, and SettingsError as `wait_for_remote_settings` does.
    """
    return _apply(settings, MemberReader(settings, fulcrum).values(fulcrum.get_self()))


def _apply(settings: Settings, values: dict[str, Any]) -> Settings:
    """Return the settings with these values. Raises SettingsError if they are invalid or a required one is missing."""
    # A token from FulcrumCore replaces a local password: only one of the two may be set.
    has_token = {"proxmox_token_id", "proxmox_token_secret"} <= values.keys()
    unset = frozenset({"proxmox_password"}) if has_token else frozenset()
    try:
        new_settings = overlay(settings, values, ORIGIN, unset=unset)
    except ValidationError as error:
        lines = _problem_lines(problems_in(error), values)
        raise SettingsError("\n".join(lines)) from None  # pydantic's own text would show values
    new_settings.require_proxmox()
    names = sorted(member.name for member in MEMBERS if member.attribute in values)
    log.info("remote_configuration_applied", members=names)
    return new_settings


def _problem_lines(problems: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[str]:
    for name, problem in problems.items():
        member = next((member for member in MEMBERS if member.attribute == name.lower()), None)
        if member is not None and member.attribute in values:
            yield f"{member.name} {FROM_FULCRUMCORE} (it stands for {name}) {problem}"
        else:  # a local setting that is invalid only in combination with FulcrumCore's values
            yield f"{name} {problem}; some settings are {FROM_FULCRUMCORE}: {', '.join(sorted(map(str.upper, values)))}"


class _Backoff:
    """Waits between two attempts, longer each time. Logs the reason of a failure if it differs from the last one."""

    def __init__(self, sleep: Callable[[float], None], on_wait: Callable[[str], None]) -> None:
        self._sleep = sleep
        self._on_wait = on_wait
        self._attempts = count()
        self._last_logged: tuple[str, int | None] | None = None

    def wait_after(self, error: FulcrumError) -> None:
        """Log the error if it differs from the last one, then wait."""
        kind = (type(error).__name__, error.status)
        if kind != self._last_logged:
            log.warning("remote_configuration_unavailable", reason=str(error))
        self._last_logged = kind
        self._on_wait(str(error))
        backoff_s = min(MIN_BACKOFF_S * 2.0 ** min(next(self._attempts), 10), MAX_BACKOFF_S)
        self._sleep(max(backoff_s * random.uniform(0.7, 1.3), error.retry_after_s or 0.0))  # noqa: S311 (jitter)


def _sleep_with_progress(seconds: float) -> None:
    """Sleep, and report progress to the supervisor meanwhile, so that it does not restart the agent."""
    progress, deadline = Progress(), time.monotonic() + seconds
    progress.ready()  # systemd must count the agent as started: FulcrumCore may be unreachable for a day
    progress.status("waiting for FulcrumCore's configuration")
    while (left_s := deadline - time.monotonic()) > 0:
        progress.report_progress()
        time.sleep(min(left_s, 1.0))
