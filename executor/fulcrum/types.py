"""Parses the objects of FulcrumCore's API. An invalid member is recorded as a defect and does not raise an error.

The agent must be able to parse and claim an invalid job, because FulcrumCore accepts the report of a failure only for a
claimed job. This module checks the types of members, and whether the database and Ansible can store the values. It does
not check the properties of a VM, which `runs/vm_properties.py` does.
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

UUID_TEXT = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


#: The status of a service that was deleted, as this project's service types name it.
SERVICE_DELETED = "Deleted"
#: The beginning of a reference to a secret in FulcrumCore's vault. The secret's id follows.
VAULT_PREFIX = "vault://"
#: The metric types that the agent reports. A usage is a share from 0 to 1. The others are in bytes per second.
METRIC_TYPES = (
    "vm.cpu.usage",
    "vm.memory.usage",
    "vm.disk.usage",
    "vm.network.in",
    "vm.network.out",
    "vm.disk.read",
    "vm.disk.write",
)


def _uuid_text(value: str) -> str:
    if not UUID_TEXT.fullmatch(value):
        raise ValueError("not a UUID")
    return value.lower()


#: An id of FulcrumCore: a UUID as text in lower case.
CoreId = Annotated[str, AfterValidator(_uuid_text)]
#: An integer that fits into the integer columns of the agent's database.
SmallInt = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]


class CoreModel(BaseModel):
    """Base of FulcrumCore's objects. Every member except `id` may be missing, null or invalid: it has a default."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)
    defect_prefix: ClassVar[str] = ""  #: text before the names of members in `defects`

    id: CoreId
    _defects: tuple[str, ...] = PrivateAttr(default=())

    @property
    def defects(self) -> tuple[str, ...]:
        """The invalid and the missing required members, each with the type of error and without its value."""
        return self._defects

    @classmethod
    def read(cls, raw: Any) -> Self:
        """Make an object from FulcrumCore's parsed JSON. Invalid members get their default and are listed in `defects`.

        Raises ValueError if the id is missing or not a UUID.
        """
        defects: list[str] = []
        model = cls.model_validate(raw, context=defects)
        reported = {text.partition(":")[0] for text in defects}
        defects.extend(text for text in model._defects_of_object() if text.partition(":")[0] not in reported)
        model._defects = tuple(defects)
        return model

    def _defects_of_object(self) -> list[str]:
        """Return the defects that concern several or missing members. Subclasses override this method."""
        return []

    @field_validator("*", mode="wrap")
    @classmethod
    def _default_if_invalid(cls, value: Any, handler: Callable[[Any], Any], info: ValidationInfo) -> Any:
        """Validate a member with `handler`; if it is invalid, add a defect to `info.context` and return its default."""
        name = str(info.field_name)
        if name == "id":
            return handler(value)
        default = cls.model_fields[name].get_default(call_default_factory=True)
        if value is None:
            return default
        try:
            return _to_utc(check_storable(handler(value)))
        except (ValueError, OverflowError) as exc:
            if isinstance(info.context, list):
                info.context.append(f"{cls.defect_prefix}{to_camel(name)}: {error_type(exc)}")
            return default


def _to_utc(value: Any) -> Any:
    """Return a datetime in UTC, and any other value unchanged."""
    if not isinstance(value, datetime):
        return value
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def error_type(exc: Exception) -> str:
    """Return the type of a validation error. It does not contain the invalid value, which pydantic's message quotes."""
    errors = getattr(exc, "errors", None)
    return str(errors(include_input=False)[0]["type"]) if errors else str(exc)


class CoreService(CoreModel):
    """A service of FulcrumCore, which one VM serves.

    While a job with the action `update` runs, `properties` have the values from before the update.
    """

    defect_prefix: ClassVar[str] = "service."

    name: str | None = None
    status: str | None = None
    provider_id: CoreId | None = None
    consumer_id: CoreId | None = None
    agent_id: CoreId | None = None
    service_type_id: CoreId | None = None
    group_id: CoreId | None = None
    agent_instance_id: str | None = None
    agent_instance_data: Any = Field(default=None, repr=False)
    properties: dict[str, Any] | None = Field(default=None, repr=False)
    created_at: datetime | None = None
    updated_at: datetime | None = None


class CoreJob(CoreModel):
    """A job of FulcrumCore. The agent claims a job that has `defects`, too, and then fails it with INVALID_REQUEST."""

    action: str | None = None
    status: str | None = None
    priority: SmallInt = 1
    params: Any = Field(default=None, repr=False)
    provider_id: CoreId | None = None
    consumer_id: CoreId | None = None
    agent_id: CoreId | None = None
    service_id: CoreId | None = None
    service: CoreService | None = None
    error_message: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    claimed_at: datetime | None = None
    completed_at: datetime | None = None

    def _defects_of_object(self) -> list[str]:
        defects = [f"{name}: missing" for name in ("action", "service") if not getattr(self, name)]
        if self.service and self.service_id not in (None, self.service.id):
            defects.append("service: its id differs from serviceId")
        return defects


class CoreParticipant(CoreModel):
    """The participant (an organization in FulcrumCore) that is the provider of an agent."""

    defect_prefix: ClassVar[str] = "participant."

    name: str | None = None
    status: str | None = None


class CoreAgentType(CoreModel):
    """The type that FulcrumCore has assigned to this agent."""

    defect_prefix: ClassVar[str] = "agentType."

    name: str | None = None
    service_type_ids: list[CoreId] = Field(default_factory=list)
    configuration_schema: dict[str, Any] = Field(default_factory=dict)


class CoreAgent(CoreModel):
    """This agent, as FulcrumCore describes it."""

    defect_prefix: ClassVar[str] = "agent."

    name: str | None = None
    status: str | None = None
    provider_id: CoreId | None = None
    agent_type_id: CoreId | None = None
    service_pool_set_id: CoreId | None = None
    tags: list[str] = Field(default_factory=list)
    configuration: dict[str, Any] = Field(default_factory=dict, repr=False)
    participant: CoreParticipant | None = None
    agent_type: CoreAgentType | None = None

    @property
    def is_disabled(self) -> bool:
        """True if the agent or its participant is disabled. FulcrumCore does not enforce this status."""
        return "Disabled" in (self.status, self.participant.status if self.participant else None)


class ServiceType(CoreModel):
    """A kind of service. An administrator may change its schemas at any time: do not cache them for long."""

    defect_prefix: ClassVar[str] = "serviceType."

    name: str | None = None
    property_schema: dict[str, Any] = Field(default_factory=dict)
    lifecycle_schema: dict[str, Any] = Field(default_factory=dict)

    def secret_paths(self) -> set[tuple[str, ...]]:
        """Return the paths of the properties marked as secret. `*` in a path stands for every item of an array."""
        return set(_secret_paths_in(self.property_schema, ()))


def _secret_paths_in(definition: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the secrets in the definition of one property, which is at `path`.

    A whole schema has the form of the definition of an object, with the empty path.
    """
    if not isinstance(definition, dict):
        return
    if path and definition.get("secret"):
        yield path
    members = definition.get("properties")
    for name, member in members.items() if isinstance(members, dict) else ():
        yield from _secret_paths_in(member, (*path, name))
    yield from _secret_paths_in(definition.get("items"), (*path, "*"))


class MetricType(CoreModel):
    """A metric type that exists in FulcrumCore. FulcrumCore refuses metric entries of other types."""

    defect_prefix: ClassVar[str] = "metricType."

    name: str | None = None
    entity_type: str | None = None


@dataclass
class PendingJobs:
    """The jobs in the answer to one request for pending jobs."""

    jobs: list[CoreJob] = field(default_factory=list)
    unusable_items: list[str] = field(
        default_factory=list
    )  #: a text for each item without a valid id; it does not quote the item
