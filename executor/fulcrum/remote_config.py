"""Overrides settings with the configuration that FulcrumCore holds for the agent, if SMITH_REMOTE_CONFIG is true.

Each member of the configuration stands for one setting and is checked like this setting. An invalid member raises
SettingsError. Unknown and empty members are ignored. While FulcrumCore or its vault does not answer, the agent retries:
an outage must not make the start of the agent fail.
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

#: `smith config show` shows this text as the origin of a setting whose value comes from FulcrumCore.
ORIGIN = "FulcrumCore"
#: Bounds of the time between two attempts to read the configuration.
MIN_BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0


def wait_for_remote_settings(
    settings: Settings,
    fulcrum: FulcrumClient,
    *,
    sleep: Callable[[float], None] | None = None,
    on_wait: Callable[[str], None] = lambda _reason: None,
) -> Settings:
    """Return the settings with FulcrumCore's configuration applied. Retry until FulcrumCore answers.

    `on_wait` is called after each failed attempt, with the reason. Tests replace `sleep`. Raises SettingsError if a
    member is invalid, or if a required setting is still missing. The exception names all of them.
    """
    if not settings.smith_remote_config:
        return settings
    backoff = _Backoff(sleep or _sleep_with_progress, on_wait)
    while True:
        try:
            agent = fulcrum.get_self()
            values = MemberReader(settings, fulcrum).values(agent)
        except FulcrumError as error:  # includes 404 for a secret that an administrator may be replacing
            backoff.wait_after(error)
            continue
        return _apply(settings, values)


def fetch_remote_settings(settings: Settings, fulcrum: FulcrumClient) -> Settings:
    """Return the settings with FulcrumCore's configuration applied. Do not retry.

    Raises FulcrumError if FulcrumCore does not answer, and SettingsError like `wait_for_remote_settings`.
    """
    return _apply(settings, MemberReader(settings, fulcrum).values(fulcrum.get_self()))


def _apply(settings: Settings, values: dict[str, Any]) -> Settings:
    """Return the settings with these values. Raises SettingsError if one is invalid or a required one is missing."""
    # A token from FulcrumCore replaces a password in the local settings, because only one of the two may be set.
    has_token = {"proxmox_token_id", "proxmox_token_secret"} <= values.keys()
    unset = frozenset({"proxmox_password"}) if has_token else frozenset()
    try:
        new_settings = overlay(settings, values, ORIGIN, unset=unset)
    except ValidationError as error:
        lines = _problem_lines(problems_in(error), values)
        raise SettingsError("\n".join(lines)) from None  # the text of pydantic's exception would show values
    new_settings.require_proxmox()
    names = sorted(member.name for member in MEMBERS if member.attribute in values)
    log.info("remote_configuration_applied", members=names)
    return new_settings


def _problem_lines(problems: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each problem, which is given by the name of its setting."""
    for name, problem in problems.items():
        member = next((member for member in MEMBERS if member.attribute == name.lower()), None)
        if member is not None and member.attribute in values:
            yield f"{member.name} {FROM_FULCRUMCORE} (it stands for {name}) {problem}"
        else:  # a local setting is invalid only together with values from FulcrumCore
            yield f"{name} {problem}; some settings are {FROM_FULCRUMCORE}: {', '.join(sorted(map(str.upper, values)))}"


class _Backoff:
    """Waits between two attempts, longer after each. Logs an error if it is of another kind than the last one."""

    def __init__(self, sleep: Callable[[float], None], on_wait: Callable[[str], None]) -> None:
        self._sleep = sleep
        self._on_wait = on_wait
        self._attempts = count()
        self._last_logged: tuple[str, int | None] | None = None

    def wait_after(self, error: FulcrumError) -> None:
        """Log the error if its type or status differs from that of the last error. Then wait."""
        kind = (type(error).__name__, error.status)
        if kind != self._last_logged:
            log.warning("remote_configuration_unavailable", reason=str(error))
        self._last_logged = kind
        self._on_wait(str(error))
        backoff_s = min(MIN_BACKOFF_S * 2.0 ** min(next(self._attempts), 10), MAX_BACKOFF_S)
        self._sleep(max(backoff_s * random.uniform(0.7, 1.3), error.retry_after_s or 0.0))  # noqa: S311 (jitter)


def _sleep_with_progress(seconds: float) -> None:
    """Sleep, and report progress to the supervisor meanwhile. Otherwise the supervisor would restart the agent."""
    progress, deadline = Progress(), time.monotonic() + seconds
    progress.ready()  # tells systemd that the agent has started: FulcrumCore may be unreachable for a day
    progress.status("waiting for FulcrumCore's configuration")
    while (left_s := deadline - time.monotonic()) > 0:
        progress.report_progress()
        time.sleep(min(left_s, 1.0))
