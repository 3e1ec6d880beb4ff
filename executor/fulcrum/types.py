"""Parses the objects of FulcrumCore's API. An invalid member is recorded as a defect and does not raise an error.

The agent must be able to parse and claim an invalid job, because FulcrumCore accepts the report of a failure only for a
claimed job. This module checks the types of members, and whether the database can store the values. The properties of a
VM are checked in `runs/vm_properties.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator
from pydantic.alias_generators import to_camel

from executor.fulcrum.untrusted_json import check_storable

#: Matches a UUID as text, in upper or lower case.
UUID_PATTERN = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
#: The status of a deleted service in the service types of this project (`deploy/service-type-*.json`).
DELETED_SERVICE_STATUS = "Deleted"
#: The status with which an administrator disables an agent, or its participant (the organization that it belongs to).
DISABLED_STATUS = "Disabled"
#: The first characters of a reference to a secret in FulcrumCore's vault. The id of the secret follows.
VAULT_PREFIX = "vault://"
#: The metric types that the agent reports. A usage is a share from 0 to 1. All other values are in bytes per second.
METRIC_TYPES = (
    "vm.cpu.usage",
    "vm.memory.usage",
    "vm.disk.usage",
    "vm.network.in",
    "vm.network.out",
    "vm.disk.read",
    "vm.disk.write",
)


def _lower_case_uuid(value: str) -> str:
    if not UUID_PATTERN.fullmatch(value):
        raise ValueError("not a UUID")
    return value.lower()


#: An id in FulcrumCore: a UUID as text in lower case.
FulcrumId = Annotated[str, AfterValidator(_lower_case_uuid)]
#: An integer that fits into the integer columns of the agent's database.
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]


class FulcrumModel(BaseModel):
    """Base of FulcrumCore's objects. A member except `id` gets its default if it is missing, null or invalid."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)
    defect_prefix: ClassVar[str] = ""  #: the text before the name of a member in `defects`

    id: FulcrumId
    _defects: tuple[str, ...] = PrivateAttr(default=())

    @property
    def defects(self) -> tuple[str, ...]:
        """The defects of the object, such as `service.name: string_type`: a member's name and the type of the error."""
        return self._defects

    @classmethod
    def parse(cls, data: Any) -> Self:
        """Create an object from FulcrumCore's parsed JSON. Invalid members get their default, and `defects` lists them.

        Raises ValueError if the id is missing or is not a UUID.
        """
        defects: list[str] = []
        model = cls.model_validate(data, context=defects)  # _default_if_invalid appends to the list
        names_with_defect = {_member_name(defect) for defect in defects}
        for defect in model._defects_after_validation():
            if _member_name(defect) not in names_with_defect:
                defects.append(defect)
        model._defects = tuple(defects)
        return model

    def _defects_after_validation(self) -> list[str]:
        """Return the defects that the validation of single members cannot find. Subclasses override this method.

        Such defects are missing members, and members that contradict each other.
        """
        return []

    @field_validator("*", mode="wrap")
    @classmethod
    def _default_if_invalid(cls, value: Any, handler: Callable[[Any], Any], info: ValidationInfo) -> Any:
        """Validate a member with `handler`. If it is invalid, add a defect to `info.context`; return the default."""
        name = str(info.field_name)
        if name == "id":
            return handler(value)  # raises ValueError for an invalid id
        default = cls.model_fields[name].get_default(call_default_factory=True)
        if value is None:
            return default
        try:
            return _to_utc(check_storable(handler(value)))
        except (ValueError, OverflowError) as exc:
            if isinstance(info.context, list):
                info.context.append(f"{cls.defect_prefix}{to_camel(name)}: {validation_error_type(exc)}")
            return default


def _member_name(defect: str) -> str:
    """Return the name of the member at the beginning of a defect's text, which has the form `name: type of error`."""
    return defect.partition(":")[0]


def _to_utc(value: Any) -> Any:
    """Return a datetime in UTC. Return any other value unchanged."""
    if not isinstance(value, datetime):
        return value
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def validation_error_type(exc: Exception) -> str:
    """Return the type of a validation error. Unlike pydantic's message, the type does not quote the invalid value."""
    errors = getattr(exc, "errors", None)
    return str(errors(include_input=False)[0]["type"]) if errors else str(exc)


class FulcrumService(FulcrumModel):
    """A service in FulcrumCore. One VM belongs to each service.

    While a job with the action `update` runs, `properties` contains the values from before the update.
    """

    defect_prefix: ClassVar[str] = "service."

    name: str | None = None
    status: str | None = None
    provider_id: FulcrumId | None = None
    consumer_id: FulcrumId | None = None
    agent_id: FulcrumId | None = None
    service_type_id: FulcrumId | None = None
    #: the service group: FulcrumCore sends the next job of a group when the previous one has ended
    group_id: FulcrumId | None = None
    #: the id that the agent reported for the VM: the agent's id, a slash and the VMID
    agent_instance_id: str | None = None
    #: what the agent last reported about the VM, such as its node and IP addresses
    agent_instance_data: Any = Field(default=None, repr=False)
    properties: dict[str, Any] | None = Field(default=None, repr=False)
    created_at: datetime | None = None
    updated_at: datetime | None = None


class FulcrumJob(FulcrumModel):
    """A job in FulcrumCore. The agent also claims a job that has `defects`, and then fails it with INVALID_REQUEST."""

    action: str | None = None
    status: str | None = None
    priority: Int32 = 1
    #: the job's properties, which are the new values in an update. Without them, an update fails, and every other job
    #: uses the service's properties.
    params: Any = Field(default=None, repr=False)
    provider_id: FulcrumId | None = None
    consumer_id: FulcrumId | None = None
    agent_id: FulcrumId | None = None
    service_id: FulcrumId | None = None
    service: FulcrumService | None = None
    error_message: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    claimed_at: datetime | None = None
    completed_at: datetime | None = None

    def _defects_after_validation(self) -> list[str]:
        defects = [f"{name}: missing" for name in ("action", "service") if not getattr(self, name)]
        if self.service and self.service_id not in (None, self.service.id):
            defects.append("service: its id differs from serviceId")
        return defects


class FulcrumParticipant(FulcrumModel):
    """The participant (an organization in FulcrumCore) to which the agent belongs."""

    defect_prefix: ClassVar[str] = "participant."

    name: str | None = None
    status: str | None = None


class FulcrumAgentType(FulcrumModel):
    """The type that FulcrumCore has assigned to this agent."""

    defect_prefix: ClassVar[str] = "agentType."

    name: str | None = None
    service_type_ids: list[FulcrumId] = Field(default_factory=list)
    configuration_schema: dict[str, Any] = Field(default_factory=dict)


class FulcrumAgent(FulcrumModel):
    """This agent, as FulcrumCore describes it."""

    defect_prefix: ClassVar[str] = "agent."

    name: str | None = None
    status: str | None = None
    provider_id: FulcrumId | None = None
    agent_type_id: FulcrumId | None = None
    #: the agent's set of service pools, from which FulcrumCore can take values of the services' properties
    service_pool_set_id: FulcrumId | None = None
    #: a customer's order can name tags; FulcrumCore gives the new service to an agent that has all of them
    tags: list[str] = Field(default_factory=list)
    configuration: dict[str, Any] = Field(default_factory=dict, repr=False)
    participant: FulcrumParticipant | None = None
    agent_type: FulcrumAgentType | None = None
    updated_at: datetime | None = None  #: each heartbeat changes it

    @property
    def is_disabled(self) -> bool:
        """Whether the agent or its participant is disabled.

        FulcrumCore still accepts the requests of a disabled agent. So the agent itself must stop claiming jobs.
        """
        participant_status = self.participant.status if self.participant else None
        return DISABLED_STATUS in (self.status, participant_status)


class ServiceType(FulcrumModel):
    """A kind of service. Its schemas must not be cached for long: an administrator may change them at any time."""

    defect_prefix: ClassVar[str] = "serviceType."

    name: str | None = None
    property_schema: dict[str, Any] = Field(default_factory=dict)
    #: the statuses of a service, and the actions that change them
    lifecycle_schema: dict[str, Any] = Field(default_factory=dict)

    @property
    def running_statuses(self) -> frozenset[str] | None:
        """The statuses of a service whose VM runs; None if the service type does not name them."""
        names = self.lifecycle_schema.get("runningStates")
        if not isinstance(names, list) or not names:
            return None
        return frozenset(name for name in names if isinstance(name, str))

    def secret_paths(self) -> set[tuple[str, ...]]:
        """Return the paths of the properties that the schema marks as secret.

        A path contains the names that lead to the property. `*` stands for every item of an array.
        """
        return set(_secret_paths_in(self.property_schema, ()))


def _secret_paths_in(definition: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the properties that `definition` marks as secret.

    `definition` is the schema's definition of the property at `path`, which may contain definitions of nested
    properties. It can also be the whole schema; then `path` is empty.
    """
    if not isinstance(definition, dict):
        return
    if path and definition.get("secret"):
        yield path
    members = definition.get("properties")
    for name, member_definition in members.items() if isinstance(members, dict) else ():
        yield from _secret_paths_in(member_definition, (*path, name))
    yield from _secret_paths_in(definition.get("items"), (*path, "*"))


class ListedService(FulcrumService):
    """A service in the response to `GET /services`. The service contains its service type, not only the type's id."""

    service_type: ServiceType | None = None


class MetricType(FulcrumModel):
    """A metric type in FulcrumCore. A metric value names its type. FulcrumCore refuses a value with an unknown type."""

    defect_prefix: ClassVar[str] = "metricType."

    name: str | None = None
    #: what is measured: `Agent`, `Service`, or `Resource` (a part of a VM, such as its CPU).
    #: The entity type of all METRIC_TYPES is `Resource`
    entity_type: str | None = None


@dataclass
class PendingJobs:
    """The jobs in the answer to one request for pending jobs."""

    jobs: list[FulcrumJob] = field(default_factory=list)
    #: One text for each item in the answer that has no valid id. The text does not quote the item.
    unusable_item_descriptions: list[str] = field(default_factory=list)
    unread_count: int = 0  #: the number of items that FulcrumCore sent beyond the requested number
