"""Runs the checks that concern FulcrumCore, and reads the configuration that FulcrumCore holds for the agent."""

from __future__ import annotations

from collections.abc import Generator
from typing import NoReturn

from executor.doctor.checks import Area, CheckResult, ResultFactory
from executor.doctor.fulcrum_agent import check_agent
from executor.doctor.fulcrum_connection import check_connection
from executor.doctor.fulcrum_types import check_metric_types, check_service_types
from executor.doctor.open_jobs import check_open_jobs
from executor.errors import FulcrumError, SettingsError
from executor.fulcrum import remote_config
from executor.fulcrum.client import FulcrumClient
from executor.settings.settings import Settings

_RESULT_FACTORY = ResultFactory(Area.FULCRUM)


class _ConfigurationUnavailable(Exception):
    """FulcrumCore did not return the agent's configuration. The agent would wait and retry, but a check does not."""


def check_fulcrum(settings: Settings) -> Generator[CheckResult, None, Settings | None]:
    """Check FulcrumCore, and return the effective settings.

    If `smith_remote_config` is set, the agent's configuration in FulcrumCore is part of the effective settings. Returns
    None if this configuration cannot be read.
    """
    # If FulcrumCore provides no settings, the effective settings are known even without a connection to FulcrumCore.
    settings_if_unreachable = None if settings.smith_remote_config else settings
    client = FulcrumClient(
        settings.fulcrum_api_url,
        settings.fulcrum_api_token.get_secret_value,
        ca_bundle=settings.fulcrum_ca_bundle,
        verify_tls=settings.fulcrum_verify_tls,
    )
    agent = yield from check_connection(client, settings)
    if agent is None:
        return settings_if_unreachable
    yield from check_agent(agent, client, settings)
    effective_settings = yield from _read_configuration(settings, client)
    try:
        yield from check_service_types(agent, client, settings)
        yield from check_metric_types(client, effective_settings or settings)
        # Warns of jobs that are pending or processing in FulcrumCore, but that the agent neither processes nor reports.
        yield from check_open_jobs(client, agent.id, settings)
    except FulcrumError as error:  # the result is named "types", whichever of the three checks failed
        yield _RESULT_FACTORY.fail("types", str(error))
    return effective_settings


def _read_configuration(settings: Settings, client: FulcrumClient) -> Generator[CheckResult, None, Settings | None]:
    """Read the agent's configuration from FulcrumCore, and return the effective settings.

    The configuration overrides the settings in files and in the environment. If the configuration cannot be read or is
    not valid, return None.
    """
    if not settings.smith_remote_config:
        return settings
    try:
        effective_settings = remote_config.wait_for_remote_settings(settings, client, on_wait=_raise_instead_of_wait)
    except _ConfigurationUnavailable as reason:
        remedy = (
            "check the agent's configuration in FulcrumCore, and the secrets in FulcrumCore's vault; or set "
            "SMITH_REMOTE_CONFIG=false"
        )
        yield _RESULT_FACTORY.fail("configuration", f"{reason}; the agent would wait and retry", remedy)
        return None
    except SettingsError as error:
        for line in str(error).splitlines():
            yield _RESULT_FACTORY.fail("configuration", line, "correct the agent's configuration in FulcrumCore")
        return None
    yield _RESULT_FACTORY.ok("configuration", "overrides the settings in files and in the environment")
    return effective_settings


def _raise_instead_of_wait(reason: str) -> NoReturn:
    """End `wait_for_remote_settings` after its first failed attempt, because a check must not wait."""
    raise _ConfigurationUnavailable(reason)
