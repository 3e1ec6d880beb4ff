"""FulcrumCore: does it know us, does its clock agree, and do its types fit our playbooks."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, NoReturn
from urllib.parse import urlsplit

from executor.doctor.checks import Area, Check, Maker
from executor.errors import FulcrumAuthFailing, FulcrumError, JobError, SettingsError
from executor.fulcrum import remote_config
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import METRIC_TYPES, CoreAgent, ServiceType
from executor.runs import actions
from executor.runs.actions import ansible_home
from executor.runs.request import Site
from executor.settings.settings import Settings
from executor.settings.types import is_local

_MAKER = Maker(Area.FULCRUM)
#: Deadlines follow FulcrumCore's clock, so more than this costs no job; but one of the clocks is wrong.
MOST_CLOCK_OFFSET_S = 5.0
#: Properties without which no VM can be made.
SHAPE = ("cores", "memoryMb", "diskGb")
#: The property that FulcrumCore should keep in its vault.
PASSWORD = "ciPassword"  # noqa: S105  (its name)


class _NoAnswer(Exception):
    """The configuration could not be had at the first attempt: the doctor does not wait."""


def look(settings: Settings) -> Generator[Check, None, Settings | None]:
    """Look at FulcrumCore; returns the settings in force, None when they depend on an answer that did not come."""
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
        text = f"{error}. The token is wrong, revoked or expired, or FulcrumCore's database is away: all look the same"
        yield _MAKER.fail("token", text)
        return None if settings.smith_remote_config else settings
    except FulcrumError as error:
        yield _MAKER.fail("reachable", str(error))
        return None if settings.smith_remote_config else settings
    yield _MAKER.ok("reachable", settings.fulcrum_api_url)
    yield from _ourselves(agent)
    yield from _clock(client)
    in_force = yield from _configuration(settings, client)
    try:
        yield from _service_types(agent, client, settings)
        yield from _metric_types(client, in_force or settings)
    except FulcrumError as error:
        yield _MAKER.fail("types", str(error))
    return in_force


def _transport(settings: Settings) -> Iterator[Check]:
    url = urlsplit(settings.fulcrum_api_url)
    if url.scheme == "http" and not is_local(f"{url.hostname}:0"):
        yield _MAKER.warn("tls", "http:// lets everybody on the way read the token", "FULCRUM_API_URL=https://…")
    elif url.scheme == "https" and not settings.fulcrum_verify_tls:
        yield _MAKER.warn("tls", "the certificate is not checked", "FULCRUM_VERIFY_TLS=true")
    else:
        yield _MAKER.ok("tls", "verified" if url.scheme == "https" else "none, on this machine")


def _ourselves(agent: CoreAgent) -> Iterator[Check]:
    yield _MAKER.ok("token", f"agent {agent.name or '?'} ({agent.id})")
    if agent.is_disabled:
        yield _MAKER.warn("enabled", "FulcrumCore has the agent or its provider disabled: it claims nothing")
    else:
        yield _MAKER.ok("enabled", f"status {agent.status}")


def _clock(client: FulcrumClient) -> Iterator[Check]:
    offset_s = client.clock_offset_s
    text = f"{abs(offset_s):.1f} s {'ahead of' if offset_s > 0 else 'behind'} ours"
    if abs(offset_s) > MOST_CLOCK_OFFSET_S:
        yield _MAKER.warn("clock", f"{text}: one of the two is wrong")
    else:
        yield _MAKER.ok("clock", text)


def _configuration(settings: Settings, client: FulcrumClient) -> Generator[Check, None, Settings | None]:
    """Read what the agent would lay over the settings."""
    if not settings.smith_remote_config:
        return settings
    try:
        in_force = remote_config.settings_in_force(settings, client, on_wait=_do_not_wait)
    except _NoAnswer as reason:
        yield _MAKER.fail("configuration", f"{reason}; the agent would wait for it")
        return None
    except SettingsError as error:
        for line in str(error).splitlines():
            yield _MAKER.fail("configuration", line)
        return None
    yield _MAKER.ok("configuration", "laid over file and environment")
    return in_force


def _do_not_wait(reason: str) -> NoReturn:
    raise _NoAnswer(reason)


def _service_types(agent: CoreAgent, client: FulcrumClient, settings: Settings) -> Iterator[Check]:
    ids = agent.agent_type.service_type_ids if agent.agent_type else []
    if not ids:
        yield _MAKER.fail("service types", "the agent's type serves none: no job can ever come")
    folders = Site.from_settings(settings, ansible_home()).folders
    for type_id in ids:
        found = client.get_service_type(type_id)
        yield from _actions(found, folders)
        yield from _backup(found, settings)
        properties = found.property_schema.get("properties")
        absent = [name for name in SHAPE if not isinstance(properties, dict) or name not in properties]
        if absent:
            yield _MAKER.fail(f"type {found.name}", f"has no property {', '.join(absent)}: no VM can be made of it")
        if isinstance(properties, dict) and PASSWORD in properties and (PASSWORD,) not in found.secret_paths():
            text = f"{PASSWORD} is not marked secret: FulcrumCore shows it to everybody who may read the service"
            yield _MAKER.warn(f"type {found.name}", text, f'"{PASSWORD}": {{"secret": {{"type": "ephemeral"}}, …}}')


def _actions(found: ServiceType, folders: Any) -> Iterator[Check]:
    """Compare the lifecycle with our playbooks."""
    names, problems = _action_names(found), []
    for name in names:
        try:
            actions.find(name, folders)
        except JobError as error:
            problems.append(error.detail)
    if problems:
        yield _MAKER.fail(f"type {found.name}", "; ".join(problems))
    elif not names:
        yield _MAKER.fail(f"type {found.name}", "its lifecycle has no actions")
    else:
        yield _MAKER.ok(f"type {found.name}", f"a playbook for each of {', '.join(names)}")


def _action_names(found: ServiceType) -> list[str]:
    listed = found.lifecycle_schema.get("actions")
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    return sorted({str(row.get("name")) for row in rows})


def _backup(found: ServiceType, settings: Settings) -> Iterator[Check]:
    """Say that a backup that is sold has no place to go to; a playbook of the provider's own may know one."""
    is_own = settings.smith_actions_path is not None and (settings.smith_actions_path / "backup.yml").exists()
    if "backup" in _action_names(found) and not settings.proxmox_backup_storage and not is_own:
        text = f"type {found.name} has them, and nothing says where they go: each would end in INVALID_REQUEST"
        yield _MAKER.warn("backups", text, "PROXMOX_BACKUP_STORAGE=…")


def _metric_types(client: FulcrumClient, settings: Settings) -> Iterator[Check]:
    if settings.smith_metrics_interval_s == 0:
        yield _MAKER.ok("metric types", "not used: SMITH_METRICS_INTERVAL_S is 0")
        return
    known = {metric_type.name for metric_type in client.metric_types()}
    missing = [name for name in METRIC_TYPES if name not in known]
    if missing:
        bodies = [f'POST /metric-types {{"name": "{name}", "entityType": "Resource"}}' for name in missing]
        yield _MAKER.warn("metric types", f"FulcrumCore does not know {', '.join(missing)}: not sent", *bodies)
    else:
        yield _MAKER.ok("metric types", f"all {len(METRIC_TYPES)}")
