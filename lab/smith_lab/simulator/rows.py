"""Defines the row class of each table of the FulcrumCore simulator.

Times are seconds since 1970, by the simulator's clock, which tests can set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: A JSON object.
Json = dict[str, Any]


@dataclass(kw_only=True)
class Row:
    """The base class of every row, with the members that all tables have."""

    id: str
    created_at: float
    updated_at: float


@dataclass(kw_only=True)
class Participant(Row):
    """A provider of services, or a consumer of services (a customer)."""

    name: str
    status: str


@dataclass(kw_only=True)
class Token(Row):
    """A bearer token. Its role is `admin`, `participant` or `agent`."""

    name: str
    role: str
    value: str
    expire_at: float
    #: In a participant's token, the id of this participant. In an agent's token, the id of the agent's provider.
    participant_id: str | None = None
    agent_id: str | None = None  #: the agent of an agent's token; None in other tokens


@dataclass(kw_only=True)
class ServiceType(Row):
    """A kind of service, such as a VM. It defines the properties, states and actions of its services."""

    name: str
    property_schema: Json
    lifecycle_schema: Json


@dataclass(kw_only=True)
class AgentType(Row):
    """A kind of agent. It determines the service types, the configuration and the installation of its agents.

    An install command is a shell command that an operator runs on a host. It downloads the agent's configuration file.
    """

    name: str
    service_type_ids: list[str]
    configuration_schema: Json
    config_template: str = ""  #: Go template of the configuration file
    cmd_template: str = ""  #: Go template of the install command
    config_content_type: str = "text/plain"  #: media type of the configuration file


@dataclass(kw_only=True)
class Agent(Row):
    """A program, such as Agent Smith, that executes the jobs of one provider."""

    name: str
    status: str
    provider_id: str
    agent_type_id: str
    tags: list[str] | None
    configuration: Json | None
    #: id of the ServicePoolSet whose pools contain values for the properties of the agent's services
    service_pool_set_id: str | None = None
    last_status_at: float  #: time of the last heartbeat, or of the creation


@dataclass(kw_only=True)
class Group(Row):
    """A group of services of one consumer. An agent gets at most one job of a group at a time."""

    name: str
    consumer_id: str


@dataclass(kw_only=True)
class Service(Row):
    """Something that a consumer ordered, such as a VM."""

    provider_id: str
    consumer_id: str
    agent_id: str
    service_type_id: str
    group_id: str
    name: str
    status: str
    properties: Json | None
    agent_instance_id: str | None = None  #: the id that the agent reported for the VM or container
    agent_instance_data: Json | None = None  #: data that the agent reported about it, such as IP addresses


@dataclass(kw_only=True)
class Job(Row):
    """A request to an agent to execute one action for one service."""

    provider_id: str
    consumer_id: str
    agent_id: str
    service_id: str
    group_id: str  #: the service's group; it is not in the JSON of a job
    action: str
    params: Json | None  #: in a `create` or `update` job: the properties of the service after the job; else None
    status: str = "Pending"
    priority: int = 1
    claimed_at: float | None = None
    completed_at: float | None = None
    error_message: str = ""
    #: Set by a test: members that replace members of the job's JSON in answers.
    override: Json = field(default_factory=dict)
    #: Set by a test: names of members that are omitted from the job's JSON in answers.
    hidden_members: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class MetricType(Row):
    """A kind of metric, such as CPU use."""

    name: str
    entity_type: str  #: what the metric measures: `Agent`, `Service` or `Resource`


@dataclass(kw_only=True)
class MetricEntry(Row):
    """One measured value that an agent sent."""

    provider_id: str
    consumer_id: str
    agent_id: str
    service_id: str
    resource_id: str  #: the name that the agent gave to the measured resource
    type_id: str
    type_name: str
    value: float


@dataclass(kw_only=True)
class OptionType(Row):
    """A kind of option, such as an image or a network."""

    name: str
    type: str  #: the name by which a `serviceOption` validator in a property schema refers to this type
    description: str


@dataclass(kw_only=True)
class Option(Row):
    """One value of an option type that a provider offers."""

    provider_id: str
    service_option_type_id: str
    name: str
    value: Any
    enabled: bool
    display_order: int


@dataclass(kw_only=True)
class ServicePoolSet(Row):
    """A set of service pools of one provider. An agent uses the pools of at most one set."""

    name: str
    provider_id: str


@dataclass(kw_only=True)
class Pool(Row):
    """The base class of pools. A pool is a set of values.

    If a property's schema has a `generator`, the property gets a value from a pool when a request sets no value.
    """

    name: str
    type: str  #: a `generator` names this text as its `poolType`, to get a value from this pool
    property_type: str  #: the type of the values, such as `string`
    generator_type: str  #: source of the values: `list` (API calls add them) or, only in a ServicePool, `subnet`
    generator_config: Json | None  #: in a `subnet` pool, the member `cidr` is the subnet
    participant_id: str | None  #: the pool's owner; None (only in a ConfigPool): agents of all providers use it


@dataclass(kw_only=True)
class ServicePool(Pool):
    """A pool for properties of services."""

    service_pool_set_id: str


@dataclass(kw_only=True)
class ConfigPool(Pool):
    """A pool for configurations of agents."""


@dataclass(kw_only=True)
class PoolValue(Row):
    """One value of a pool. It is allocated to at most one service, or to at most one agent."""

    name: str
    value: Any
    pool_id: str
    participant_id: str | None  #: the pool's `participant_id`; None in a value that a `subnet` pool generated
    allocated_to_id: str | None = None  #: id of the service or agent to which the value is allocated
    property_name: str | None = None  #: the property that got the value
    allocated_at: float | None = None


@dataclass(kw_only=True)
class Subscription(Row):
    """The progress of a subscriber, which is a program that processes all events.

    The program may run in several instances. Only the instance that has the lease gets new events.
    """

    instance_id: str = ""  #: the instance that acquired the lease last
    lease_expires_at: float = 0.0
    last_sequence_number: int = 0  #: number of the last event that the subscriber acknowledged


@dataclass(kw_only=True)
class Event(Row):
    """One entry of the event log."""

    sequence_number: int
    initiator_type: str  #: always `user`, even if the caller was an agent
    initiator_id: str  #: id of the caller's token
    type: str
    payload: Json | None  #: the changes of the object that changed; the API calls this member `properties`
    provider_id: str | None = None
    agent_id: str | None = None
    consumer_id: str | None = None


@dataclass(kw_only=True)
class InstallToken(Row):
    """The secret part of the URL from which an install command fetches an agent's configuration."""

    agent_id: str
    value: str
    expires_at: float  #: in the API: `expiresAt` (for a Token: `expireAt`)
    bearer_token_id: str  #: id of a Token; the install command contains this Token and the URL
