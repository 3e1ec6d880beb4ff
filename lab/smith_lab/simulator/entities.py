"""Renders rows as the JSON of FulcrumCore's internal objects (entities).

An event of FulcrumCore's event log contains the difference between an entity's JSON before and after a change.

This JSON differs from the JSON of the API: it has no `createdAt` and no `updatedAt`, and contains ids instead of
embedded objects. An agent has the additional member `lastStatusUpdate`. An agent type has no `serviceTypeIds`.
"""

from __future__ import annotations

from typing import Any

from smith_lab.simulator.clock import time_to_text
from smith_lab.simulator.rows import (
    Agent,
    AgentType,
    ConfigPool,
    Group,
    Json,
    MetricType,
    Option,
    OptionType,
    Participant,
    Row,
    Service,
    ServicePool,
    ServicePoolSet,
    ServiceType,
    Token,
)


def json_for_events(row: Row) -> Json:
    """Return the JSON of a row's entity, with only the members that have a value."""
    members = _MEMBERS[type(row)](row)
    return {"id": row.id, **{name: value for name, value in members.items() if value is not None}}


def _agent(row: Agent) -> Json:
    return {
        "name": row.name,
        "status": row.status,
        "lastStatusUpdate": f"{time_to_text(row.last_status_at)[:-1]}.{int(row.last_status_at % 1 * 1e6):06}Z",
        "tags": row.tags,
        "configuration": row.configuration,
        "agentTypeId": row.agent_type_id,
        "providerId": row.provider_id,
        "servicePoolSetId": row.service_pool_set_id,  # the service pools for the properties of the agent's services
    }


def _agent_type(row: AgentType) -> Json:
    return {
        "name": row.name,
        "configurationSchema": row.configuration_schema,
        "configTemplate": row.config_template,
        "cmdTemplate": row.cmd_template,
        "configContentType": row.config_content_type,
    }


def _service(row: Service) -> Json:
    return {
        "name": row.name,
        "status": row.status,
        "properties": row.properties,
        "agentInstanceId": row.agent_instance_id,
        "agentInstanceData": row.agent_instance_data,
        "providerId": row.provider_id,
        "consumerId": row.consumer_id,
        "groupId": row.group_id,
        "agentId": row.agent_id,
        "serviceTypeId": row.service_type_id,
    }


def _pool(row: ServicePool | ConfigPool) -> Json:
    """Render a pool of values for properties of services (ServicePool) or for configurations of agents (ConfigPool).

    A value is an IP address, for example. A service pool set contains service pools of one provider.
    """
    return {
        "name": row.name,
        "type": row.type,
        "propertyType": row.property_type,
        "generatorType": row.generator_type,
        "generatorConfig": row.generator_config,
        "participantId": row.participant_id,
        "servicePoolSetId": row.service_pool_set_id if isinstance(row, ServicePool) else None,
    }


def _option(row: Option) -> Json:
    """Render a service option: a value that a provider offers for properties of services, such as an image."""
    return {
        "providerId": row.provider_id,
        "serviceOptionTypeId": row.service_option_type_id,
        "name": row.name,
        "value": row.value,
        "enabled": row.enabled,
        "displayOrder": row.display_order,
    }


def _token(row: Token) -> Json:
    return {
        "name": row.name,
        "role": row.role,
        "expireAt": time_to_text(row.expire_at),
        "participantId": row.participant_id,
        "agentId": row.agent_id,
    }


def _service_type(row: ServiceType) -> Json:
    return {"name": row.name, "propertySchema": row.property_schema, "lifecycleSchema": row.lifecycle_schema}


_MEMBERS: dict[type[Row], Any] = {
    Agent: _agent,
    AgentType: _agent_type,
    Service: _service,
    ServiceType: _service_type,
    ServicePool: _pool,
    ConfigPool: _pool,
    ServicePoolSet: lambda row: {"name": row.name, "providerId": row.provider_id},
    Option: _option,
    OptionType: lambda row: {"name": row.name, "type": row.type, "description": row.description},
    Token: _token,
    Group: lambda row: {"name": row.name, "consumerId": row.consumer_id},
    Participant: lambda row: {"name": row.name, "status": row.status},
    MetricType: lambda row: {"name": row.name, "entityType": row.entity_type},
}
