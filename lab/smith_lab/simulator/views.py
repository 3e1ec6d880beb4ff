"""Renders rows as FulcrumCore's JSON.

The JSON does not contain members without a value, with one exception: if an agent has no tags, `tags` is null.
"""

from __future__ import annotations

from typing import Any

from smith_lab.simulator.clock import time_to_text
from smith_lab.simulator.rows import (
    Agent,
    AgentType,
    Event,
    Group,
    Job,
    Json,
    MetricEntry,
    MetricType,
    Option,
    OptionType,
    Participant,
    Row,
    Service,
    ServiceType,
    Token,
)
from smith_lab.simulator.store import Store


def _row_body(row: Row, members: Json) -> Json:
    """Return the JSON of a row: its id, the `members` that have a value, and its times."""
    members_with_value = {name: value for name, value in members.items() if value is not None}
    return {
        "id": row.id,
        **members_with_value,
        "createdAt": time_to_text(row.created_at),
        "updatedAt": time_to_text(row.updated_at),
    }


def participant(row: Participant) -> Json:
    return _row_body(row, {"name": row.name, "status": row.status})


def token(row: Token, *, with_value: bool = False) -> Json:
    return _row_body(
        row,
        {
            "name": row.name,
            "role": row.role,
            "expireAt": time_to_text(row.expire_at),
            "participantId": row.participant_id,
            "agentId": row.agent_id,
            "value": row.value if with_value else None,
        },
    )


def service_type(row: ServiceType) -> Json:
    members = {"name": row.name, "propertySchema": row.property_schema, "lifecycleSchema": row.lifecycle_schema}
    return _row_body(row, members)


def agent_type(row: AgentType) -> Json:
    return _row_body(
        row,
        {
            "name": row.name,
            "serviceTypeIds": row.service_type_ids,
            "configurationSchema": row.configuration_schema,
            "configTemplate": row.config_template or None,
            "cmdTemplate": row.cmd_template or None,
            "configContentType": row.config_content_type,
        },
    )


def agent(store: Store, row: Agent) -> Json:
    body = _row_body(
        row,
        {
            "name": row.name,
            "status": row.status,
            "providerId": row.provider_id,
            "agentTypeId": row.agent_type_id,
            "configuration": row.configuration,
            "servicePoolSetId": row.service_pool_set_id,
            "participant": participant(store.participants[row.provider_id]),
            "agentType": agent_type(store.agent_types[row.agent_type_id]),
        },
    )
    body["tags"] = row.tags
    return body


def _embedded_agent(row: Agent) -> Json:
    """Render an agent as a member of a job or service, without the objects `participant` and `agentType`."""
    members = {
        "name": row.name,
        "status": row.status,
        "providerId": row.provider_id,
        "agentTypeId": row.agent_type_id,
        "configuration": row.configuration,
    }
    return {**_row_body(row, members), "tags": row.tags}


def group(row: Group) -> Json:
    return _row_body(row, {"name": row.name, "consumerId": row.consumer_id})


def service(row: Service) -> Json:
    """Render a service without its agent and its type, as the server does in a job and after the service's creation."""
    return _row_body(
        row,
        {
            "providerId": row.provider_id,
            "consumerId": row.consumer_id,
            "agentId": row.agent_id,
            "serviceTypeId": row.service_type_id,
            "groupId": row.group_id,
            "agentInstanceId": row.agent_instance_id,
            "name": row.name,
            "status": row.status,
            "properties": row.properties,
            "agentInstanceData": row.agent_instance_data,
        },
    )


def full_service(store: Store, row: Service) -> Json:
    """Render a service with its agent and its type, as the server does in lists and when it returns one service."""
    return {
        **service(row),
        "agent": _embedded_agent(store.agents[row.agent_id]),
        "serviceType": service_type(store.service_types[row.service_type_id]),
    }


def job(store: Store, row: Job) -> Json:
    """Render a job with its service, but without agent, provider and consumer, as in the list of pending jobs.

    Replace the members that a test overrode, and omit the members that a test hid.
    """
    body = _row_body(
        row,
        {
            "providerId": row.provider_id,
            "consumerId": row.consumer_id,
            "agentId": row.agent_id,
            "serviceId": row.service_id,
            "action": row.action,
            "params": row.params,
            "status": row.status,
            "priority": row.priority,
            "claimedAt": _optional_time(row.claimed_at),
            "completedAt": _optional_time(row.completed_at),
            "errorMessage": row.error_message or None,
            "service": service(store.services[row.service_id]),
        },
    )
    body.update(row.override)
    for name in row.hidden:
        body.pop(name, None)
    return body


def full_job(store: Store, row: Job) -> Json:
    """Render a job with agent, provider and consumer, as the server does in lists and when it returns one job."""
    return {
        **job(store, row),
        "agent": _embedded_agent(store.agents[row.agent_id]),
        "provider": participant(store.participants[row.provider_id]),
        "consumer": participant(store.participants[row.consumer_id]),
    }


def metric_type(row: MetricType) -> Json:
    return _row_body(row, {"name": row.name, "entityType": row.entity_type})


def metric_entry(row: MetricEntry) -> Json:
    return _row_body(
        row,
        {
            "providerId": row.provider_id,
            "consumerId": row.consumer_id,
            "agentId": row.agent_id,
            "serviceId": row.service_id,
            "resourceId": row.resource_id,
            "value": row.value,
            "typeId": row.type_id,
        },
    )


def option_type(row: OptionType) -> Json:
    return _row_body(row, {"name": row.name, "type": row.type, "description": row.description})


def option(row: Option) -> Json:
    return _row_body(
        row,
        {
            "providerId": row.provider_id,
            "serviceOptionTypeId": row.service_option_type_id,
            "name": row.name,
            "value": row.value,
            "enabled": row.enabled,
            "displayOrder": row.display_order,
        },
    )


def event(row: Event) -> Json:
    return _row_body(
        row,
        {
            "sequenceNumber": row.sequence_number,
            "initiatorType": row.initiator_type,
            "initiatorId": row.initiator_id,
            "type": row.type,
            "properties": row.payload,
            "providerId": row.provider_id,
            "agentId": row.agent_id,
            "consumerId": row.consumer_id,
        },
    )


def _optional_time(time_s: float | None) -> str | None:
    return None if time_s is None else time_to_text(time_s)


def all_members(row: Any) -> Json:
    """Return every member of a row as it is stored, for GET /lab/state."""
    return dict(vars(row))
