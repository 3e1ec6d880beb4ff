"""Defines the row class of each table. Times are seconds since 1970, by the simulator's clock."""

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
    """A kind of agent. It determines the service types, the configuration and the installation of its agents."""

    name: str
    service_type_ids: list[str]
    configuration_schema: Json
    config_template: str = ""  #: Go template of the configuration file that an install command fetches
    cmd_template: str = ""  #: Go template of the install command
    config_content_type: str = "text/plain"


@dataclass(kw_only=True)
class Agent(Row):
    """A program, such as Agent Smith, that executes the jobs of one provider."""

    name: str
    status: str
    provider_id: str
    agent_type_id: str
    tags: list[str] | None
    configuration: Json | None
    service_pool_set_id: str | None = None  #: id of the pools (see Pool) from which services get values
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
    agent_instance_data: Json | None = None


@dataclass(kw_only=True)
class Job(Row):
    """A request to an agent to execute one action for one service."""

    provider_id: str
    consumer_id: str
    agent_id: str
    service_id: str
    group_id: str  #: the service's group; it is not in the JSON of a job
    action: str
    params: Json | None  #: all new properties of the service, in a `create` or `update` job; None in other jobs
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
    entity_type: str


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
    type: str  #: the name of this option type in a property schema (validator `serviceOption`)
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
    """The base class of pools. A property gets a value from a pool if its schema has a `generator` with this pool."""

    name: str
    type: str  #: the name of this pool in a `generator` of a schema
    property_type: str  #: the type of the values, such as `string`
    generator_type: str  #: how the pool gets its values: `list`, or (only for services) `subnet`
    generator_config: Json | None
    participant_id: str | None  #: the provider that owns the pool; None in a pool for the agents of all providers


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
    participant_id: str | None
    allocated_to_id: str | None = None  #: id of the service or agent to which the value is allocated
    property_name: str | None = None
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
    initiator_type: str
    initiator_id: str
    type: str
    payload: Json | None  #: the changes of the row; this member is called `properties` in the API
    provider_id: str | None = None
    agent_id: str | None = None
    consumer_id: str | None = None


@dataclass(kw_only=True)
class InstallToken(Row):
    """The secret part of the URL from which an install command fetches an agent's configuration."""

    agent_id: str
    value: str
    expires_at: float  #: `expiresAt` in the API; in a Token it is `expireAt`
    bearer_token_id: str  #: id of the token that the install command sends as its bearer token
