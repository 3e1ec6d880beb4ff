"""Renders rows as FulcrumCore's JSON.

A function `full_…` also renders objects to which the row refers, such as the agent of a token. Members
without a value are omitted, except `tags` of an agent and `properties` of an event, which may be null.
"""

from __future__ import annotations

from typing import Any

from smith_lab.simulator.clock import time_to_text
from smith_lab.simulator.rows import (
    Agent,
    AgentType,
    ConfigPool,
    Event,
    Group,
    Job,
    Json,
    MetricEntry,
    MetricType,
    Option,
    OptionType,
    Participant,
    Pool,
    PoolValue,
    Row,
    Service,
    ServicePool,
    ServicePoolSet,
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


def _participant_or_none(store: Store, participant_id: str | None) -> Json | None:
    """Render a participant; return None if it was deleted. Rows may still contain the id of a deleted participant."""
    row = store.participants.get(participant_id or "")
    return participant(row) if row else None


def _agent_or_none(store: Store, agent_id: str | None) -> Json | None:
    row = store.agents.get(agent_id or "")
    return agent(row) if row else None


def _with_members(body: Json, **members: Any) -> Json:
    """Return a copy of the body with these `members` added. Omit members whose value is None."""
    return {**body, **{name: value for name, value in members.items() if value is not None}}


def full_token(store: Store, row: Token, *, with_value: bool = False) -> Json:
    """Render a token with its agent and its participant."""
    return _with_members(
        token(row, with_value=with_value),
        agent=_agent_or_none(store, row.agent_id),
        participant=_participant_or_none(store, row.participant_id),
    )


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
            "configTemplate": row.config_template,
            "cmdTemplate": row.cmd_template,
            "configContentType": row.config_content_type,
        },
    )


def full_agent(store: Store, row: Agent) -> Json:
    """Render an agent with its participant and type, as FulcrumCore does when it returns one agent."""
    return _with_members(
        agent(row),
        participant=_participant_or_none(store, row.provider_id),
        agentType=agent_type(store.agent_types[row.agent_type_id]),
    )


def listed_agent(store: Store, row: Agent) -> Json:
    """Render an agent as in a list of agents: in `agentType`, the member `serviceTypeIds` is empty."""
    body = full_agent(store, row)
    return {**body, "agentType": {**body["agentType"], "serviceTypeIds": []}}


def agent(row: Agent) -> Json:
    """Render an agent without participant and type, as in the answer to its creation and inside other objects."""
    members = {
        "name": row.name,
        "status": row.status,
        "providerId": row.provider_id,
        "agentTypeId": row.agent_type_id,
        "configuration": row.configuration,
        "servicePoolSetId": row.service_pool_set_id,
    }
    return {**_row_body(row, members), "tags": row.tags}


def group(row: Group) -> Json:
    return _row_body(row, {"name": row.name, "consumerId": row.consumer_id})


def full_group(store: Store, row: Group) -> Json:
    return _with_members(group(row), consumer=_participant_or_none(store, row.consumer_id))


def service(row: Service) -> Json:
    """Render a service without agent and type, as in the answer to its creation and inside other objects."""
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
    """Render a service with its agent and its type, as FulcrumCore does in lists and when it returns one service."""
    return {
        **service(row),
        "agent": agent(store.agents[row.agent_id]),
        "serviceType": service_type(store.service_types[row.service_type_id]),
    }


def job(store: Store, row: Job) -> Json:
    """Render a job with its service, but without agent, provider and consumer, as in an agent's list of pending jobs.

    Replace members as a test requested (`override`), and omit the members that a test hid (`hidden_members`).
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
    for name in row.hidden_members:
        body.pop(name, None)
    return body


def full_job(store: Store, row: Job) -> Json:
    """Render a job with agent, provider and consumer, as in the list of all jobs and the answer with one job."""
    return _with_members(
        job(store, row),
        agent=_agent_or_none(store, row.agent_id),
        provider=_participant_or_none(store, row.provider_id),
        consumer=_participant_or_none(store, row.consumer_id),
    )


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


def full_metric_entry(store: Store, row: MetricEntry) -> Json:
    """Render an entry with its agent, service and type, as FulcrumCore does in lists."""
    return _with_members(
        metric_entry(row),
        agent=_agent_or_none(store, row.agent_id),
        service=service(store.services[row.service_id]),
        type=metric_type(store.metric_types[row.type_id]),
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


def full_event(store: Store, row: Event) -> Json:
    """Render an event with its provider, agent and consumer, as in the event log."""
    return _with_members(
        event(row),
        provider=_participant_or_none(store, row.provider_id),
        agent=_agent_or_none(store, row.agent_id),
        consumer=_participant_or_none(store, row.consumer_id),
    )


def event(row: Event) -> Json:
    """Render an event without provider, agent and consumer, as in the answer to a subscriber that requests events."""
    body = _row_body(
        row,
        {
            "sequenceNumber": row.sequence_number,
            "initiatorType": row.initiator_type,
            "initiatorId": row.initiator_id,
            "type": row.type,
            "providerId": row.provider_id,
            "agentId": row.agent_id,
            "consumerId": row.consumer_id,
        },
    )
    return {**body, "properties": row.payload}


def service_pool_set(row: ServicePoolSet) -> Json:
    return _row_body(row, {"name": row.name, "providerID": row.provider_id})  # "ID" as in FulcrumCore


def full_service_pool_set(store: Store, row: ServicePoolSet) -> Json:
    return _with_members(service_pool_set(row), provider=_participant_or_none(store, row.provider_id))


def _pool(row: Pool, **members: Any) -> Json:
    return _row_body(
        row,
        {
            "name": row.name,
            "type": row.type,
            "propertyType": row.property_type,
            "generatorType": row.generator_type,
            "generatorConfig": row.generator_config,
            **members,
        },
    )


def service_pool(row: ServicePool) -> Json:
    return _pool(row, servicePoolSetId=row.service_pool_set_id)


def full_service_pool(store: Store, row: ServicePool) -> Json:
    pool_set = store.service_pool_sets.get(row.service_pool_set_id)
    return _with_members(service_pool(row), servicePoolSetName=pool_set.name if pool_set else None)


def config_pool(row: ConfigPool) -> Json:
    return _pool(row, participantId=row.participant_id)


def full_config_pool(store: Store, row: ConfigPool) -> Json:
    return _with_members(config_pool(row), participant=_participant_or_none(store, row.participant_id))


def _pool_value(row: PoolValue, **members: Any) -> Json:
    allocation = {"propertyName": row.property_name, "allocatedAt": _optional_time(row.allocated_at)}
    return _row_body(row, {"name": row.name, "value": row.value, **allocation, **members})


def service_pool_value(row: PoolValue) -> Json:
    return _pool_value(row, servicePoolId=row.pool_id, serviceId=row.allocated_to_id)


def full_service_pool_value(store: Store, row: PoolValue) -> Json:
    service_row, pool = store.services.get(row.allocated_to_id or ""), store.service_pools.get(row.pool_id)
    return _with_members(
        service_pool_value(row),
        service=service(service_row) if service_row else None,
        servicePool=service_pool(pool) if pool else None,
    )


def config_pool_value(row: PoolValue) -> Json:
    return _pool_value(row, configPoolId=row.pool_id, agentId=row.allocated_to_id)


def full_config_pool_value(store: Store, row: PoolValue) -> Json:
    pool = store.config_pools.get(row.pool_id)
    return _with_members(
        config_pool_value(row),
        agent=_agent_or_none(store, row.allocated_to_id),
        configPool=config_pool(pool) if pool else None,
    )


def _optional_time(time_s: float | None) -> str | None:
    return None if time_s is None else time_to_text(time_s)


def all_members(row: Any) -> Json:
    """Return all attributes of a row for GET /lab/state, with the attribute names as keys."""
    return dict(vars(row))
