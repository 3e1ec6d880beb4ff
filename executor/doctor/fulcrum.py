"""Checks FulcrumCore: connection, token, clock, configuration, service types and metric types."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, NoReturn

from executor.doctor.checks import Area, CheckResult, ResultFactory
from executor.doctor.fulcrum_connection import check_connection
from executor.doctor.open_jobs import check_open_jobs
from executor.errors import FulcrumError, JobError, SettingsError
from executor.fulcrum import remote_config
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import METRIC_TYPES, CoreAgent, ServiceType
from executor.runs import actions
from executor.runs.actions import ansible_home
from executor.runs.request import PlanSettings
from executor.settings.settings import Settings

_RESULT = ResultFactory(Area.FULCRUM)
#: The check warns if FulcrumCore's clock and this machine's clock differ by more than this. Even then, jobs can
#: succeed, because deadlines use FulcrumCore's clock.
MAX_CLOCK_OFFSET_S = 5.0
#: The properties that a service type must have, because each create needs them.
REQUIRED_PROPERTIES = ("cores", "memoryMb", "diskGb")
#: The command that creates a service type and adds it to the agent's type.
ADD_TYPE_HINT = "smith bootstrap core --agent … --provider … --service-type-file deploy/service-type-vm.json"
#: The name of the property for a VM's password. A service type should mark this property as secret.
PASSWORD_PROPERTY = "ciPassword"  # noqa: S105  (a name, not a password)


class _ConfigurationUnavailable(Exception):
    """FulcrumCore did not return the agent's configuration. The agent would wait and retry, but the check fails."""


def check_fulcrum(settings: Settings) -> Generator[CheckResult, None, Settings | None]:
    """Check FulcrumCore, and return the effective settings.

    If `smith_remote_config` is set, the agent's configuration in FulcrumCore is part of the effective settings. Returns
    None if this configuration cannot be read.
    """
    # The effective settings if a request to FulcrumCore fails.
    settings_without_fulcrum = None if settings.smith_remote_config else settings
    client = FulcrumClient(
        settings.fulcrum_api_url,
        settings.fulcrum_api_token.get_secret_value,
        ca_bundle=settings.fulcrum_ca_bundle,
        verify_tls=settings.fulcrum_verify_tls,
    )
    agent = yield from check_connection(client, settings)
    if agent is None:
        return settings_without_fulcrum
    yield from _check_agent(agent)
    yield from _check_clock(client)
    effective_settings = yield from _read_configuration(settings, client)
    try:
        yield from _check_service_types(agent, client, settings)
        yield from _check_metric_types(client, effective_settings or settings)
        yield from check_open_jobs(client, agent.id, settings)
    except FulcrumError as error:
        yield _RESULT.fail("types", str(error))
    return effective_settings


def _check_agent(agent: CoreAgent) -> Iterator[CheckResult]:
    yield _RESULT.ok("token", f"agent {agent.name or '?'} ({agent.id})")
    if agent.is_disabled:
        text = "the agent or its provider is disabled in FulcrumCore, so the agent claims no jobs"
        hint = f'PATCH /agents/{agent.id} {{"status": "Disconnected"}}, and enable the participant'
        yield _RESULT.warn("enabled", text, hint)
    else:
        yield _RESULT.ok("enabled", f"status {agent.status}")


def _check_clock(client: FulcrumClient) -> Iterator[CheckResult]:
    offset_s = client.clock_offset_s
    direction = "ahead of" if offset_s > 0 else "behind"
    text = f"FulcrumCore's clock is {abs(offset_s):.1f} s {direction} this machine's clock"
    if abs(offset_s) > MAX_CLOCK_OFFSET_S:
        yield _RESULT.warn("clock", f"{text}: one of the two clocks is wrong", "timedatectl set-ntp true")
    else:
        yield _RESULT.ok("clock", text)


def _read_configuration(settings: Settings, client: FulcrumClient) -> Generator[CheckResult, None, Settings | None]:
    """Read the agent's configuration from FulcrumCore, and return the effective settings.

    The configuration overrides the settings in files and in the environment. Returns None if it cannot be read or is
    invalid.
    """
    if not settings.smith_remote_config:
        return settings
    try:
        effective_settings = remote_config.wait_for_remote_settings(settings, client, on_wait=_raise_instead_of_wait)
    except _ConfigurationUnavailable as reason:
        hint = "check the agent's configuration and the vault in FulcrumCore, or SMITH_REMOTE_CONFIG=false"
        yield _RESULT.fail("configuration", f"{reason}; the agent would wait and retry", hint)
        return None
    except SettingsError as error:
        for line in str(error).splitlines():
            yield _RESULT.fail("configuration", line, "correct the agent's configuration in FulcrumCore")
        return None
    yield _RESULT.ok("configuration", "overrides the settings in files and in the environment")
    return effective_settings


def _raise_instead_of_wait(reason: str) -> NoReturn:
    """End `wait_for_remote_settings` after its first failed attempt, because a check must not wait."""
    raise _ConfigurationUnavailable(reason)


def _check_service_types(agent: CoreAgent, client: FulcrumClient, settings: Settings) -> Iterator[CheckResult]:
    service_type_ids = agent.agent_type.service_type_ids if agent.agent_type else []
    if not service_type_ids:
        text = "the agent's type has no service types, so the agent gets no jobs"
        yield _RESULT.fail("service types", text, ADD_TYPE_HINT)
    playbook_folders = PlanSettings.from_settings(settings, ansible_home()).playbook_folders
    for service_type_id in service_type_ids:
        service_type = client.get_service_type(service_type_id)
        yield from _check_actions(service_type, playbook_folders)
        yield from _check_backup(service_type, settings)
        yield from _check_properties(service_type)


def _check_properties(service_type: ServiceType) -> Iterator[CheckResult]:
    """Check that a service type has the required properties and marks the password as secret."""
    properties = service_type.property_schema.get("properties")
    if not isinstance(properties, dict):
        properties = {}
    missing_names = [name for name in REQUIRED_PROPERTIES if name not in properties]
    if missing_names:
        text = f"the type has no property {', '.join(missing_names)}, so no VM can be created from it"
        yield _RESULT.fail(f"type {service_type.name}", text, ADD_TYPE_HINT)
    password_path = (PASSWORD_PROPERTY,)  # a path is a tuple of names, and this property is not nested
    is_marked_secret = password_path in service_type.secret_paths()
    if PASSWORD_PROPERTY in properties and not is_marked_secret:
        text = f"{PASSWORD_PROPERTY} is not marked secret: FulcrumCore shows it to all who may read the service"
        hint = f'"{PASSWORD_PROPERTY}": {{"secret": {{"type": "ephemeral"}}, …}}'
        yield _RESULT.warn(f"type {service_type.name}", text, hint)


def _check_actions(service_type: ServiceType, playbook_folders: Any) -> Iterator[CheckResult]:
    """Check that each action in the lifecycle of the service type has a playbook."""
    names = _action_names(service_type)
    problems: list[str] = []
    for name in names:
        try:
            actions.find(name, playbook_folders)
        except JobError as error:
            problems.append(error.detail)
    if problems:
        hint = "SMITH_ACTIONS_PATH=/folder/with/the/playbooks, or remove the action from the service type"
        yield _RESULT.fail(f"type {service_type.name}", "; ".join(problems), hint)
    elif not names:
        yield _RESULT.fail(f"type {service_type.name}", "its lifecycle has no actions", ADD_TYPE_HINT)
    else:
        yield _RESULT.ok(f"type {service_type.name}", f"each action has a playbook: {', '.join(names)}")


def _action_names(service_type: ServiceType) -> list[str]:
    lifecycle_actions = service_type.lifecycle_schema.get("actions")
    if not isinstance(lifecycle_actions, list):
        return []
    return sorted({str(action.get("name")) for action in lifecycle_actions if isinstance(action, dict)})


def _check_backup(service_type: ServiceType, settings: Settings) -> Iterator[CheckResult]:
    """Warn when a service type has the action backup, but every backup would fail.

    A backup needs PROXMOX_BACKUP_STORAGE, unless the folder of the operator's own playbooks has a `backup.yml`.
    """
    if "backup" not in _action_names(service_type) or settings.proxmox_backup_storage:
        return
    own_playbooks_folder = settings.smith_actions_path
    if own_playbooks_folder is None or not (own_playbooks_folder / "backup.yml").exists():
        text = f"type {service_type.name} has the action backup, but no storage for backups is set"
        problem = f"{text}: each backup would fail with INVALID_REQUEST"
        yield _RESULT.warn("backups", problem, "PROXMOX_BACKUP_STORAGE=…")


def _check_metric_types(client: FulcrumClient, settings: Settings) -> Iterator[CheckResult]:
    if settings.smith_metrics_interval_s == 0:
        yield _RESULT.ok("metric types", "not used, because SMITH_METRICS_INTERVAL_S is 0")
        return
    existing_names = {metric_type.name for metric_type in client.metric_types()}
    missing_names = [name for name in METRIC_TYPES if name not in existing_names]
    if missing_names:
        hints = [f'POST /metric-types {{"name": "{name}", "entityType": "Resource"}}' for name in missing_names]
        text = f"FulcrumCore has no metric type {', '.join(missing_names)}, so the agent does not send these metrics"
        yield _RESULT.warn("metric types", text, *hints)
    else:
        yield _RESULT.ok("metric types", f"all {len(METRIC_TYPES)} metric types exist")
