"""Overrides settings with the configuration that FulcrumCore holds for the agent, if SMITH_REMOTE_CONFIG is true.

Its members pass the same checks as the settings that they stand for; an invalid one is a SettingsError. Unknown and
empty members are ignored. While FulcrumCore or its vault does not answer, the request is retried: an outage must not
make the start fail.
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

#: The origin of these settings in `smith config show`.
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
        except FulcrumError as error:  # a missing secret (404) too: an administrator may be replacing it
            backoff.wait_after(error)
            continue
        return _applied(settings, values)


def fetch_remote_settings(settings: Settings, fulcrum: FulcrumClient) -> Settings:
    """Return the same with one attempt. Raises FulcrumError if it fails, SettingsError as above."""
    return _applied(settings, MemberReader(settings, fulcrum).values(fulcrum.get_self()))


def _applied(settings: Settings, values: dict[str, Any]) -> Settings:
    # A token from FulcrumCore replaces a local password: only one of the two may be set.
    has_token = {"proxmox_token_id", "proxmox_token_secret"} <= values.keys()
    without = frozenset({"proxmox_password"}) if has_token else frozenset()
    try:
        made = overlay(settings, values, ORIGIN, without=without)
    except ValidationError as error:
        lines = _problem_lines(problems_in(error), values)
        raise SettingsError("\n".join(lines)) from None  # pydantic's own text would show values
    made.require_proxmox()
    names = sorted(member.name for member in MEMBERS if member.attribute in values)
    log.info("remote_configuration_applied", members=names)
    return made


def _problem_lines(problems: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[str]:
    for name, problem in problems.items():
        member = next((member for member in MEMBERS if member.attribute == name.lower()), None)
        if member is not None and member.attribute in values:
            yield f"{member.name} {FROM_FULCRUMCORE} (it stands for {name}) {problem}"
        else:  # a local setting that is wrong only together with the remote ones
            yield f"{name} {problem}; some settings are {FROM_FULCRUMCORE}: {', '.join(sorted(map(str.upper, values)))}"


class _Backoff:
    """Waits between two attempts, longer each time, and logs a reason that differs from the last one."""

    def __init__(self, sleep: Callable[[float], None], on_wait: Callable[[str], None]) -> None:
        self._sleep = sleep
        self._on_wait = on_wait
        self._attempts = count()
        self._last_logged: tuple[str, int | None] | None = None

    def wait_after(self, error: FulcrumError) -> None:
        """Log a new reason, then wait."""
        kind = (type(error).__name__, error.status)
        if kind != self._last_logged:
            log.warning("remote_configuration_unavailable", reason=str(error))
        self._last_logged = kind
        self._on_wait(str(error))
        backoff_s = min(MIN_BACKOFF_S * 2.0 ** min(next(self._attempts), 10), MAX_BACKOFF_S)
        self._sleep(max(backoff_s * random.uniform(0.7, 1.3), error.retry_after_s or 0.0))  # noqa: S311 (jitter)


def _sleep_with_progress(seconds: float) -> None:
    """Sleep, and report progress to the supervisor meanwhile, so that it does not restart the agent."""
    progress, until = Progress(), time.monotonic() + seconds
    progress.ready()  # the service counts as started: FulcrumCore may be unreachable for a day
    progress.status("waiting for FulcrumCore's configuration")
    while (left_s := until - time.monotonic()) > 0:
        progress.report_progress()
        time.sleep(min(left_s, 1.0))
