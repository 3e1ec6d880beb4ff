"""Checks FulcrumCore: connection, token, clock, configuration, service types and metric types."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, NoReturn
from urllib.parse import urlsplit

from executor.doctor.checks import Area, Check, CheckFactory
from executor.errors import FulcrumAuthFailing, FulcrumError, JobError, SettingsError
from executor.fulcrum import remote_config
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import METRIC_TYPES, CoreAgent, ServiceType
from executor.runs import actions
from executor.runs.actions import ansible_home
from executor.runs.request import PlanSettings
from executor.settings.settings import Settings
from executor.settings.types import is_local

_CHECK = CheckFactory(Area.FULCRUM)
#: The check warns if the difference between FulcrumCore's clock and the clock of this machine is larger. Such a
#: difference makes no job fail, because deadlines use FulcrumCore's clock.
MAX_CLOCK_OFFSET_S = 5.0
#: The properties without which no VM can be created for a service of this type.
REQUIRED_PROPERTIES = ("cores", "memoryMb", "diskGb")
#: The name of the property that a service type should mark as secret.
PASSWORD_PROPERTY = "ciPassword"  # noqa: S105  (a name, not a password)


class _ConfigurationUnavailable(Exception):
    """FulcrumCore did not return the agent's configuration. An agent would wait and retry, but a check fails."""


def check_fulcrum(settings: Settings) -> Generator[Check, None, Settings | None]:
    """Check FulcrumCore, and return the effective settings.

    The effective settings include the agent's configuration in FulcrumCore if `smith_remote_config` is set. Returns
    None if this configuration cannot be read.
    """
    yield from _transport(settings)
    client = FulcrumClient(
        settings.fulcrum_api_url,
        settings.fulcrum_api_token.get_secret_value,
        ca_bundle=settings.fulcrum_ca_bundle,
        verify_tls=settings.fulcrum_verify_tls,
    )
    try:
        agent = client.get_self()
    except FulcrumAuthFailing as error:
        text = f"{error}. The token is wrong, revoked or expired, or FulcrumCore's database is down"
        yield _CHECK.fail("token", text)
        return None if settings.smith_remote_config else settings
    except FulcrumError as error:
        yield _CHECK.fail("reachable", str(error))
        return None if settings.smith_remote_config else settings
    yield _CHECK.ok("reachable", settings.fulcrum_api_url)
    yield from _agent(agent)
    yield from _clock(client)
    effective = yield from _configuration(settings, client)
    try:
        yield from _service_types(agent, client, settings)
        yield from _metric_types(client, effective or settings)
    except FulcrumError as error:
        yield _CHECK.fail("types", str(error))
    return effective


def _transport(settings: Settings) -> Iterator[Check]:
    url = urlsplit(settings.fulcrum_api_url)
    if url.scheme == "http" and not is_local(f"{url.hostname}:0"):
        yield _CHECK.warn("tls", "http:// sends the token unencrypted", "FULCRUM_API_URL=https://…")
    elif url.scheme == "https" and not settings.fulcrum_verify_tls:
        yield _CHECK.warn("tls", "the certificate is not verified", "FULCRUM_VERIFY_TLS=true")
    else:
        yield _CHECK.ok("tls", "verified" if url.scheme == "https" else "none needed on this machine")


def _agent(agent: CoreAgent) -> Iterator[Check]:
    yield _CHECK.ok("token", f"agent {agent.name or '?'} ({agent.id})")
    if agent.is_disabled:
        yield _CHECK.warn("enabled", "the agent or its provider is disabled in FulcrumCore: the agent claims no jobs")
    else:
        yield _CHECK.ok("enabled", f"status {agent.status}")


def _clock(client: FulcrumClient) -> Iterator[Check]:
    offset_s = client.clock_offset_s
    text = f"{abs(offset_s):.1f} s {'ahead of' if offset_s > 0 else 'behind'} ours"
    if abs(offset_s) > MAX_CLOCK_OFFSET_S:
        yield _CHECK.warn("clock", f"{text}: one of the two clocks is wrong")
    else:
        yield _CHECK.ok("clock", text)


def _configuration(settings: Settings, client: FulcrumClient) -> Generator[Check, None, Settings | None]:
    """Read the agent's configuration from FulcrumCore, and return the effective settings.

    The configuration has precedence over the settings in the file and in the environment.
    """
    if not settings.smith_remote_config:
        return settings
    try:
        effective = remote_config.wait_for_remote_settings(settings, client, on_wait=_do_not_wait)
    except _ConfigurationUnavailable as reason:
        yield _CHECK.fail("configuration", f"{reason}; an agent would wait and retry")
        return None
    except SettingsError as error:
        for line in str(error).splitlines():
            yield _CHECK.fail("configuration", line)
        return None
    yield _CHECK.ok("configuration", "overrides file and environment")
    return effective


def _do_not_wait(reason: str) -> NoReturn:
    """End `wait_for_remote_settings` at its first failed attempt; a check must not wait."""
    raise _ConfigurationUnavailable(reason)


def _service_types(agent: CoreAgent, client: FulcrumClient, settings: Settings) -> Iterator[Check]:
    ids = agent.agent_type.service_type_ids if agent.agent_type else []
    if not ids:
        yield _CHECK.fail("service types", "the agent's type has none, so the agent gets no jobs")
    folders = PlanSettings.from_settings(settings, ansible_home()).playbook_folders
    for type_id in ids:
        service_type = client.get_service_type(type_id)
        yield from _actions(service_type, folders)
        yield from _backup(service_type, settings)
        properties = service_type.property_schema.get("properties")
        absent = [name for name in REQUIRED_PROPERTIES if not isinstance(properties, dict) or name not in properties]
        if absent:
            text = f"has no property {', '.join(absent)}: no VM can be created from it"
            yield _CHECK.fail(f"type {service_type.name}", text)
        if isinstance(properties, dict) and _is_readable(PASSWORD_PROPERTY, properties, service_type):
            text = f"{PASSWORD_PROPERTY} is not marked secret: FulcrumCore shows it to all who may read the service"
            hint = f'"{PASSWORD_PROPERTY}": {{"secret": {{"type": "ephemeral"}}, …}}'
            yield _CHECK.warn(f"type {service_type.name}", text, hint)


def _is_readable(name: str, properties: dict[str, Any], service_type: ServiceType) -> bool:
    """Return whether the service type has this property and does not mark it as secret."""
    return name in properties and (name,) not in service_type.secret_paths()


def _actions(service_type: ServiceType, folders: Any) -> Iterator[Check]:
    """Check that each action in the lifecycle of the service type has a playbook."""
    names, problems = _action_names(service_type), []
    for name in names:
        try:
            actions.find(name, folders)
        except JobError as error:
            problems.append(error.detail)
    if problems:
        yield _CHECK.fail(f"type {service_type.name}", "; ".join(problems))
    elif not names:
        yield _CHECK.fail(f"type {service_type.name}", "its lifecycle has no actions")
    else:
        yield _CHECK.ok(f"type {service_type.name}", f"a playbook for each of {', '.join(names)}")


def _action_names(service_type: ServiceType) -> list[str]:
    listed = service_type.lifecycle_schema.get("actions")
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    return sorted({str(row.get("name")) for row in rows})


def _backup(service_type: ServiceType, settings: Settings) -> Iterator[Check]:
    """Warn when a service type has the action backup, but backups cannot work.

    They need PROXMOX_BACKUP_STORAGE, or a `backup.yml` in the folder of the operator's own playbooks.
    """
    has_own_playbook = settings.smith_actions_path is not None and (settings.smith_actions_path / "backup.yml").exists()
    if "backup" in _action_names(service_type) and not settings.proxmox_backup_storage and not has_own_playbook:
        text = f"type {service_type.name} offers backups, but no storage is set: each would fail with INVALID_REQUEST"
        yield _CHECK.warn("backups", text, "PROXMOX_BACKUP_STORAGE=…")


def _metric_types(client: FulcrumClient, settings: Settings) -> Iterator[Check]:
    if settings.smith_metrics_interval_s == 0:
        yield _CHECK.ok("metric types", "not used, because SMITH_METRICS_INTERVAL_S is 0")
        return
    known = {metric_type.name for metric_type in client.metric_types()}
    missing = [name for name in METRIC_TYPES if name not in known]
    if missing:
        hints = [f'POST /metric-types {{"name": "{name}", "entityType": "Resource"}}' for name in missing]
        text = f"FulcrumCore has no {', '.join(missing)}, so the agent does not send them"
        yield _CHECK.warn("metric types", text, *hints)
    else:
        yield _CHECK.ok("metric types", f"all {len(METRIC_TYPES)} exist")
