"""Overrides settings with the configuration that FulcrumCore holds for the agent, if SMITH_REMOTE_CONFIG is true.

Each member of the configuration is the value of one setting. The value is checked in the same way as a local value of
the setting. An invalid member raises SettingsError. Unknown and empty members are ignored. If FulcrumCore or its vault
does not answer at the start of the agent, the agent retries, because an outage must not make the start fail.

FulcrumCore must not be able to make the agent send a local secret to another server. So FulcrumCore can set the address
of Proxmox, and how Proxmox's certificate is verified, only together with the secret of a Proxmox API token. A TLS
setting on this machine always takes precedence over FulcrumCore's value.
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
from executor.fulcrum.remote_members import (
    CONFIGURATION_MEMBERS,
    FROM_FULCRUM_CONFIGURATION,
    ConfigurationMember,
    MemberReader,
)
from executor.log import get_logger
from executor.processes.progress import ProgressSender
from executor.settings.problems import problems_in
from executor.settings.settings import Settings, override_settings

log = get_logger(__name__)

#: The origin that the command `smith config show` shows for a setting whose value comes from FulcrumCore.
SETTING_ORIGIN = "FulcrumCore"
#: The settings that determine to which server the agent sends its Proxmox credentials. They include the TLS settings:
#: without verification of the certificate, another server can pose as Proxmox.
PROXMOX_SERVER_SETTINGS = ("proxmox_host", "proxmox_port", "proxmox_validate_certs", "proxmox_ca_bundle")
#: The settings that determine how the certificate of the Proxmox server is verified.
TLS_SETTINGS = ("proxmox_validate_certs", "proxmox_ca_bundle")
#: The first and the longest wait between two attempts to read the configuration, before the random factor is applied.
#: Each wait is twice as long as the previous wait.
MIN_BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0
#: Maximum number of doublings of a wait. Without it, a long outage would raise OverflowError, because the power of two
#: would be too large for a float.
MAX_DOUBLINGS = 10
#: A wait is multiplied by a random factor between these bounds, so that agents do not all retry at the same time.
MIN_JITTER_FACTOR = 0.7
MAX_JITTER_FACTOR = 1.3
#: The time between two reports of progress during a wait. The supervisor, the parent process of the agent, restarts an
#: agent that does not report progress.
PROGRESS_INTERVAL_S = 1.0


def wait_for_remote_settings(
    settings: Settings,
    fulcrum: FulcrumClient,
    *,
    sleep: Callable[[float], None] | None = None,
    on_wait: Callable[[str], None] = lambda _reason: None,
) -> Settings:
    """Return the settings with FulcrumCore's configuration applied. Retry until FulcrumCore answers.

    `on_wait` is called after each failed attempt, with the reason for the failure. Tests replace `sleep`. Raises
    SettingsError if members are invalid or required settings are missing. The exception's text names these members or
    settings.
    """
    if not settings.smith_remote_config:
        return settings
    backoff = _Backoff(sleep or _sleep_with_progress, on_wait)
    while True:
        try:
            agent = fulcrum.get_own_agent()
            values = MemberReader(settings, fulcrum).read_values(agent)
        except FulcrumError as error:
            # If FulcrumCore's vault lacks a secret that a member names, retry: an administrator may be replacing it.
            backoff.wait_after(error)
            continue
        return _apply_values(settings, values)


def fetch_remote_settings(settings: Settings, fulcrum: FulcrumClient) -> Settings:
    """Return the settings with FulcrumCore's configuration applied. Do not retry.

    Raises FulcrumError if FulcrumCore does not answer. Raises SettingsError if members are invalid or required settings
    are missing.
    """
    agent = fulcrum.get_own_agent()
    return _apply_values(settings, MemberReader(settings, fulcrum).read_values(agent))


def _apply_values(settings: Settings, values: dict[str, Any]) -> Settings:
    """Return the settings with the values from FulcrumCore. The keys of `values` are names of attributes of Settings.

    Raises SettingsError if a value is invalid, or if a required setting is still missing.
    """
    values = _values_to_apply(settings, values)
    # Only one of token and password may be set. So a token from FulcrumCore resets the local password to its default.
    has_token = {"proxmox_token_id", "proxmox_token_secret"} <= values.keys()
    names_to_reset = frozenset({"proxmox_password"}) if has_token else frozenset()
    try:
        new_settings = override_settings(settings, values, SETTING_ORIGIN, names_to_reset=names_to_reset)
    except ValidationError as error:
        lines = _problem_lines(problems_in(error), values)
        raise SettingsError("\n".join(lines)) from None  # without pydantic's exception, whose text shows values
    new_settings.require_proxmox_settings()
    applied_member_names = sorted(
        member.name for member in CONFIGURATION_MEMBERS if member.settings_attribute in values
    )
    log.info("remote_configuration_applied", members=applied_member_names)
    return new_settings


def _values_to_apply(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that may override local settings. The docstring of this module has the rules.

    Raises SettingsError if the address of Proxmox is set only in FulcrumCore, and FulcrumCore has no token secret.
    """
    ignored_attributes: set[str] = set()
    if "proxmox_token_secret" not in values:
        ignored_attributes.update(PROXMOX_SERVER_SETTINGS)
        if "proxmox_host" in values and not settings.proxmox_host:
            raise SettingsError(
                f"apiHost {FROM_FULCRUM_CONFIGURATION} (the setting PROXMOX_HOST) is used only if "
                "FulcrumCore also has apiTokenSecret, because the agent sends no secret of this machine to an address "
                "from FulcrumCore. Set apiTokenId and apiTokenSecret in FulcrumCore, or PROXMOX_HOST on this machine"
            )
    elif _is_set_on_this_machine(settings, "proxmox_ca_bundle"):
        # FulcrumCore must not turn off certificate verification, which would disable the local CA bundle.
        ignored_attributes.update(TLS_SETTINGS)
    elif _is_set_on_this_machine(settings, "proxmox_validate_certs"):
        ignored_attributes.add("proxmox_validate_certs")
    ignored_member_names = [
        member.name
        for member in CONFIGURATION_MEMBERS
        if member.settings_attribute in ignored_attributes and _changes_setting(settings, values, member)
    ]
    if ignored_member_names:
        log.warning("remote_configuration_members_ignored", members=ignored_member_names)
    return {attribute: value for attribute, value in values.items() if attribute not in ignored_attributes}


def _is_set_on_this_machine(settings: Settings, attribute: str) -> bool:
    """Return whether a source on this machine sets the setting. Otherwise the setting has its default value."""
    return attribute in settings.model_fields_set


def _changes_setting(settings: Settings, values: Mapping[str, Any], member: ConfigurationMember) -> bool:
    """Return whether the member would change the value of its setting."""
    attribute = member.settings_attribute
    return attribute in values and values[attribute] != getattr(settings, attribute)


def _problem_lines(problems: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each problem. The keys of `problems` are the names of settings."""
    remote_setting_names = ", ".join(sorted(attribute.upper() for attribute in values))
    for name, problem in problems.items():
        member = next((member for member in CONFIGURATION_MEMBERS if member.settings_attribute == name.lower()), None)
        if member is not None and member.settings_attribute in values:
            yield f"{member.name} {FROM_FULCRUM_CONFIGURATION} (the setting {name}) {problem}"
        else:  # a local setting that does not fit the values from FulcrumCore
            remote_settings = f"the settings {FROM_FULCRUM_CONFIGURATION} ({remote_setting_names})"
            yield f"{name} {problem}; correct this setting, or one of {remote_settings}"


class _Backoff:
    """Waits after each failed attempt: each time about twice as long, up to a maximum."""

    def __init__(self, sleep: Callable[[float], None], on_wait: Callable[[str], None]) -> None:
        self._sleep = sleep
        self._on_wait = on_wait
        self._wait_numbers = count()  # 0 for the first wait
        self._last_type_and_status: tuple[str, int | None] | None = None

    def wait_after(self, error: FulcrumError) -> None:
        """Log the error if its type or status differs from that of the previous error. Then wait."""
        type_and_status = (type(error).__name__, error.status)
        if type_and_status != self._last_type_and_status:
            log.warning("remote_configuration_unavailable", reason=str(error))
        self._last_type_and_status = type_and_status
        self._on_wait(str(error))
        doubling_count = min(next(self._wait_numbers), MAX_DOUBLINGS)
        backoff_s = min(MIN_BACKOFF_S * 2.0**doubling_count, MAX_BACKOFF_S)
        jitter_factor = random.uniform(MIN_JITTER_FACTOR, MAX_JITTER_FACTOR)  # noqa: S311 (not for cryptography)
        self._sleep(max(backoff_s * jitter_factor, error.retry_after_s or 0.0))


def _sleep_with_progress(seconds: float) -> None:
    """Sleep, and report progress to the supervisor during the sleep."""
    progress = ProgressSender()
    deadline = time.monotonic() + seconds
    # systemd ends an agent that does not report in time that it is ready. An outage may last a day, so the agent
    # reports that it is ready before it has the configuration.
    progress.report_ready()
    progress.report_status("waiting for FulcrumCore's configuration")
    while (remaining_s := deadline - time.monotonic()) > 0:
        progress.report_progress()
        time.sleep(min(remaining_s, PROGRESS_INTERVAL_S))
