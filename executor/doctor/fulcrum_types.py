"""Checks the service types and metric types that the agent needs in FulcrumCore.

Each agent has an agent type in FulcrumCore. The agent type lists the service types for which the agent gets jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from executor.deploy_files import find_deploy_file
from executor.doctor.checks import Area, CheckResult, ResultFactory, command_line
from executor.errors import JobError
from executor.fulcrum.bootstrap import CONTAINER_SERVICE_TYPE_FILE, VM_SERVICE_TYPE_FILE, read_type_file
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import METRIC_TYPES, FulcrumAgent, ServiceType
from executor.runs import actions
from executor.runs.actions import collection_folder
from executor.runs.request import PlaybookSettings
from executor.settings.settings import Settings

_RESULT_FACTORY = ResultFactory(Area.FULCRUM)
#: The properties that a service type must have, because each create job needs them.
REQUIRED_PROPERTIES = ("cores", "memoryMb", "diskGb")
#: The name of the property for a VM's password. A service type should mark this property as secret.
PASSWORD_PROPERTY = "ciPassword"  # noqa: S105  (a name, not a password)
#: Properties that a provider may remove from a shipped service type, for example `tags` if PROXMOX_TAGS is not set. A
#: shipped service type is defined by a file in the folder `deploy`.
OPTIONAL_PROPERTIES = frozenset({"tags"})


def command_to_add_service_type(agent: FulcrumAgent) -> str:
    """Return the command that creates the service type for VMs and adds it to the agent type of this agent."""
    provider = agent.participant.name if agent.participant else None
    options = ("--agent", agent.name or "<agent>", "--provider", provider or "<provider>")
    return command_line("smith", "bootstrap", "core", *options)


def check_service_types(agent: FulcrumAgent, client: FulcrumClient, settings: Settings) -> Iterator[CheckResult]:
    """Check the service types that belong to the agent type of this agent. Raises FulcrumError."""
    service_type_ids = agent.agent_type.service_type_ids if agent.agent_type else []
    if not service_type_ids:
        text = "the agent's type has no service types, so the agent gets no jobs"
        yield _RESULT_FACTORY.fail("service types", text, command_to_add_service_type(agent))
    # The agent searches these folders for playbooks. `collection_folder()` has Agent Smith's own playbooks.
    playbook_folders = PlaybookSettings.from_settings(settings, collection_folder()).playbook_folders
    for service_type_id in service_type_ids:
        service_type = client.get_service_type(service_type_id)
        yield from _check_actions(service_type, playbook_folders)
        yield from _warn_if_older_than_shipped_type(service_type)
        yield from _check_backup(service_type, settings)
        yield from _check_properties(service_type)


def _check_actions(service_type: ServiceType, playbook_folders: Any) -> Iterator[CheckResult]:
    """Check that each action in the lifecycle of the service type has a playbook that is safe to run.

    The lifecycle is the member `lifecycleSchema`, which lists the actions. A playbook is safe to run if only root and
    the user of the agent can change it.
    """
    action_names = _action_names(service_type.lifecycle_schema)
    problems: list[str] = []
    for name in action_names:
        try:
            actions.find_safe_action(name, playbook_folders)
        except JobError as error:
            problems.append(error.detail)
    if problems:
        remedy = "SMITH_ACTIONS_PATH=<folder with the playbooks>, or remove the action from the service type"
        yield _RESULT_FACTORY.fail(f"type {service_type.name}", "; ".join(problems), remedy)
    elif not action_names:
        yield _RESULT_FACTORY.fail(
            f"type {service_type.name}",
            "the lifecycle of the service type has no actions",
            _type_replacement_remedy(service_type),
        )
    else:
        yield _RESULT_FACTORY.ok(f"type {service_type.name}", f"each action has a playbook: {', '.join(action_names)}")


def _warn_if_older_than_shipped_type(service_type: ServiceType) -> Iterator[CheckResult]:
    """Warn if a service type has the name of a shipped type, but lacks actions or properties of the shipped type."""
    shipped_type = _shipped_type(service_type)
    if shipped_type.get("name") != service_type.name:
        return
    actions_of_type = _action_names(service_type.lifecycle_schema)
    missing_by_kind = {
        "action": [name for name in _action_names(shipped_type["lifecycleSchema"]) if name not in actions_of_type],
        "property": sorted(
            _property_names(shipped_type["propertySchema"]) - _property_names(service_type.property_schema)
        ),
    }
    missing_by_kind["property"] = [name for name in missing_by_kind["property"] if name not in OPTIONAL_PROPERTIES]
    texts = [
        f"the {_singular_or_plural(kind, names)} {', '.join(names)}" for kind, names in missing_by_kind.items() if names
    ]
    if texts and actions_of_type:
        text = f"the type is older than this version of Agent Smith: it lacks {' and '.join(texts)}"
        yield _RESULT_FACTORY.warn(f"type {service_type.name}", text, _type_replacement_remedy(service_type))


def _check_properties(service_type: ServiceType) -> Iterator[CheckResult]:
    """Check that a service type has the required properties and marks the password as secret."""
    properties = _property_names(service_type.property_schema)
    missing_names = [name for name in REQUIRED_PROPERTIES if name not in properties]
    if missing_names:
        text = f"the type has no property {', '.join(missing_names)}, so no VM can be created from it"
        yield _RESULT_FACTORY.fail(f"type {service_type.name}", text, _type_replacement_remedy(service_type))
    password_path = (PASSWORD_PROPERTY,)  # a path is a tuple of names, and this property is not nested
    is_marked_secret = password_path in service_type.secret_paths()
    if PASSWORD_PROPERTY in properties and not is_marked_secret:
        text = f"{PASSWORD_PROPERTY} is not marked secret: FulcrumCore shows it to all who may read the service"
        remedy = f'in the type\'s propertySchema: "{PASSWORD_PROPERTY}": {{"secret": {{"type": "ephemeral"}}, …}}'
        yield _RESULT_FACTORY.warn(f"type {service_type.name}", text, remedy)


def _check_backup(service_type: ServiceType, settings: Settings) -> Iterator[CheckResult]:
    """Warn if a service type has the action backup, but every backup would fail.

    A backup needs PROXMOX_BACKUP_STORAGE, unless the operator's folder SMITH_ACTIONS_PATH has a `backup.yml`, which
    replaces the playbook of Agent Smith.
    """
    if "backup" not in _action_names(service_type.lifecycle_schema) or settings.proxmox_backup_storage:
        return
    operator_playbooks_folder = settings.smith_actions_path
    if operator_playbooks_folder is None or not (operator_playbooks_folder / "backup.yml").exists():
        text = f"type {service_type.name} has the action backup, but no storage for backups is set"
        problem = f"{text}: each backup would fail with INVALID_REQUEST"
        yield _RESULT_FACTORY.warn("backups", problem, "PROXMOX_BACKUP_STORAGE=<storage>")


def check_metric_types(client: FulcrumClient, settings: Settings) -> Iterator[CheckResult]:
    """Check that FulcrumCore has all metric types of the agent.

    FulcrumCore refuses a metric whose type it does not have. Raises FulcrumError.
    """
    if settings.smith_metrics_interval_s == 0:
        yield _RESULT_FACTORY.ok("metric types", "not used, because SMITH_METRICS_INTERVAL_S is 0")
        return
    existing_names = {metric_type.name for metric_type in client.metric_types()}
    missing_names = [name for name in METRIC_TYPES if name not in existing_names]
    if missing_names:
        remedies = [f'POST /metric-types {{"name": "{name}", "entityType": "Resource"}}' for name in missing_names]
        text = f"FulcrumCore has no metric type {', '.join(missing_names)}, so the agent does not send these metrics"
        yield _RESULT_FACTORY.warn("metric types", text, *remedies)
    else:
        yield _RESULT_FACTORY.ok("metric types", f"all {len(METRIC_TYPES)} metric types exist")


def _shipped_file_name(service_type: ServiceType) -> str:
    is_container = "osTemplate" in _property_names(service_type.property_schema)
    return CONTAINER_SERVICE_TYPE_FILE if is_container else VM_SERVICE_TYPE_FILE


def _shipped_type(service_type: ServiceType) -> dict[str, Any]:
    return read_type_file(_shipped_file_name(service_type))


def _type_replacement_remedy(service_type: ServiceType) -> str:
    file = find_deploy_file(_shipped_file_name(service_type))
    return f"PATCH /service-types/{service_type.id} with the file {file}"


def _property_names(property_schema: dict[str, Any]) -> set[str]:
    properties = property_schema.get("properties")
    return set(properties) if isinstance(properties, dict) else set()


def _action_names(lifecycle_schema: dict[str, Any]) -> list[str]:
    lifecycle_actions = lifecycle_schema.get("actions")
    if not isinstance(lifecycle_actions, list):
        return []
    return sorted({str(action.get("name")) for action in lifecycle_actions if isinstance(action, dict)})


def _singular_or_plural(kind: str, names: list[str]) -> str:
    if len(names) == 1:
        return kind
    return {"action": "actions", "property": "properties"}[kind]
