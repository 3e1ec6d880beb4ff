"""The objects of FulcrumCore's API, read leniently: a job with one invalid member must still be claimed, to be failed.

Only types are checked here, and values that the database or Ansible could not hold. The properties of a VM are checked
in `runs/vm_properties.py`.
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


#: The status of a service that FulcrumCore has deleted, in this project's service types.
SERVICE_DELETED = "Deleted"
#: How a reference to a secret in FulcrumCore's vault begins.
VAULT_PREFIX = "vault://"
#: The names of every metric type that the agent can report; usages are shares between 0 and 1, rates bytes per second.
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


CoreId = Annotated[str, AfterValidator(_uuid_text)]
#: Fits every integer column that may store the value.
SmallInt = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]


class CoreModel(BaseModel):
    """One of FulcrumCore's objects: every member except `id` may be absent, null or invalid."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)
    prefix: ClassVar[str] = ""  #: of the names in `defects`

    id: CoreId
    _defects: tuple[str, ...] = PrivateAttr(default=())

    @property
    def defects(self) -> tuple[str, ...]:
        """The invalid or missing members, each with the type of error and without its value."""
        return self._defects

    @classmethod
    def read(cls, raw: Any) -> Self:
        """Make an object from FulcrumCore's JSON. Invalid members get their default and are listed in `defects`.

        Raises ValueError if the id is missing or not a UUID.
        """
        defects: list[str] = []
        model = cls.model_validate(raw, context=defects)
        named = {text.partition(":")[0] for text in defects}
        defects.extend(text for text in model._missing() if text.partition(":")[0] not in named)
        model._defects = tuple(defects)
        return model

    def _missing(self) -> list[str]:
        """Return the defects that only the whole object shows; for subclasses."""
        return []

    @field_validator("*", mode="wrap")
    @classmethod
    def _default_if_invalid(cls, value: Any, handler: Callable[[Any], Any], info: ValidationInfo) -> Any:
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
                info.context.append(f"{cls.prefix}{to_camel(name)}: {error_type(exc)}")
            return default


def _to_utc(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def error_type(exc: Exception) -> str:
    """Return the type of a validation error without the value: pydantic's own message quotes it."""
    errors = getattr(exc, "errors", None)
    return str(errors(include_input=False)[0]["type"]) if errors else str(exc)


class CoreService(CoreModel):
    """A service, the entity that a VM serves. During an `update` its `properties` are still the old ones."""

    prefix: ClassVar[str] = "service."

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
    """A job. One with `defects` can be claimed, and then failed with INVALID_REQUEST."""

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

    def _missing(self) -> list[str]:
        missing = [f"{name}: missing" for name in ("action", "service") if not getattr(self, name)]
        if self.service and self.service_id not in (None, self.service.id):
            missing.append("service: its id differs from serviceId")
        return missing


class CoreParticipant(CoreModel):
    """The provider that an agent works for."""

    prefix: ClassVar[str] = "participant."

    name: str | None = None
    status: str | None = None


class CoreAgentType(CoreModel):
    """The agent type that FulcrumCore has for this agent."""

    prefix: ClassVar[str] = "agentType."

    name: str | None = None
    service_type_ids: list[CoreId] = Field(default_factory=list)
    configuration_schema: dict[str, Any] = Field(default_factory=dict)


class CoreAgent(CoreModel):
    """This agent, as FulcrumCore has it."""

    prefix: ClassVar[str] = "agent."

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
        """True if the agent or its participant is disabled. FulcrumCore stores the status and does not enforce it."""
        return "Disabled" in (self.status, self.participant.status if self.participant else None)


class ServiceType(CoreModel):
    """The properties and lifecycle of a kind of service. They may change at any time: do not cache them for long."""

    prefix: ClassVar[str] = "serviceType."

    name: str | None = None
    property_schema: dict[str, Any] = Field(default_factory=dict)
    lifecycle_schema: dict[str, Any] = Field(default_factory=dict)

    def secret_paths(self) -> set[tuple[str, ...]]:
        """Return the properties marked secret, as paths into `properties`; `*` stands for every item of an array."""
        return set(_secret_paths_in(self.property_schema, ()))


def _secret_paths_in(definition: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the secret paths of one property definition; a whole schema is read like an object's definition."""
    if not isinstance(definition, dict):
        return
    if path and definition.get("secret"):
        yield path
    members = definition.get("properties")
    for name, member in members.items() if isinstance(members, dict) else ():
        yield from _secret_paths_in(member, (*path, name))
    yield from _secret_paths_in(definition.get("items"), (*path, "*"))


class MetricType(CoreModel):
    """A metric type that exists in FulcrumCore, which refuses entries of any other."""

    prefix: ClassVar[str] = "metricType."

    name: str | None = None
    entity_type: str | None = None


@dataclass
class PendingJobs:
    """The jobs that one poll returned."""

    jobs: list[CoreJob] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)  #: items without a usable id, described without their content
