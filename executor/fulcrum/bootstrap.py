"""Creates what an agent needs in FulcrumCore: service type, agent type, metric types, provider, agent and token.

This module first reads all existing objects, so it can raise BootstrapRefused before it creates anything. It changes
existing objects in one way only: it adds the service type to the agent type, because FulcrumCore would otherwise not
create services of this type. A repeated call creates only the objects that are still missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from executor.deploy_files import find_deploy_file
from executor.errors import FulcrumUnavailable, SmithError
from executor.fulcrum.admin import ApiCollection, FulcrumAdmin, FulcrumObject, FulcrumToken
from executor.fulcrum.differences import find_differences
from executor.fulcrum.types import METRIC_TYPES, UUID_PATTERN

VM_SERVICE_TYPE_FILE = "service-type-vm.json"
CONTAINER_SERVICE_TYPE_FILE = "service-type-container.json"
AGENT_TYPE_FILE = "agent-type-proxmox.json"

JsonObject = dict[str, Any]


class BootstrapRefused(SmithError):
    """The objects in FulcrumCore do not fit the request. An administrator must change the objects or the request.

    Nothing was created.
    """


class ObjectStatus(StrEnum):
    """Says whether a wanted object exists in FulcrumCore, and whether it was created or changed.

    Commands show the values.
    """

    FOUND = "found"  #: the object exists with the wanted content
    DIFFERS = "differs"  #: the object exists with other content, and was not changed
    #: The agent type existed, and the service type was added (attached) to it. In a dry run, it would be added.
    EXTENDED = "attached"
    CREATED = "made"  #: the object did not exist and was created
    MISSING = "missing"  #: the object does not exist, and was not created because of --dry-run


@dataclass(frozen=True, kw_only=True)
class BootstrapRequest:
    """The objects that the administrator wants to exist in FulcrumCore."""

    agent_name: str
    provider_name_or_id: str  #: the provider is the participant that provides the services
    may_create_provider: bool = False
    service_type: JsonObject  #: content of the service type
    agent_type: JsonObject  #: content of the agent type
    tags: tuple[str, ...] = ("proxmox",)  #: the agent's tags; an order may require that its agent has certain tags
    token_lifetime: timedelta
    wants_new_token: bool = False  #: create a token even if the agent has a valid one


@dataclass(frozen=True, kw_only=True)
class BootstrapStep:
    """What was found, created or changed for one wanted object. In a dry run, nothing was created or changed."""

    kind: str  #: such as `agent type`
    name: str
    status: ObjectStatus
    id: str | None = None
    #: The paths of the members that differ, such as `schema.cpu.type`, or texts such as `tags lacks proxmox`.
    differences: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class _WantedObject:
    """An object that must exist in FulcrumCore.

    `members` is the wanted content. `existing_object` is the object in FulcrumCore with this name, or None.
    """

    kind: str
    collection: ApiCollection
    members: JsonObject
    existing_object: FulcrumObject | None = None

    @property
    def name(self) -> str:
        return str(self.members["name"])

    @property
    def id(self) -> str | None:
        return self.existing_object.id if self.existing_object else None


class Bootstrap:
    """Compares the objects in FulcrumCore with a request, and creates the missing ones.

    `create_missing` may be called once only.
    """

    def __init__(self, fulcrum: FulcrumAdmin, request: BootstrapRequest) -> None:
        """Find all objects that exist already in FulcrumCore. Raises FulcrumError, BootstrapRefused."""
        self._fulcrum = fulcrum
        self._request = request
        self._service_type = self._look_up_object("service type", ApiCollection.SERVICE_TYPES, request.service_type)
        self._agent_type = self._look_up_object("agent type", ApiCollection.AGENT_TYPES, request.agent_type)
        # A metric with the entity type "Resource" is about a part of a VM, such as its CPU.
        self._metric_types = [
            self._look_up_object("metric type", ApiCollection.METRIC_TYPES, {"name": name, "entityType": "Resource"})
            for name in METRIC_TYPES
        ]
        # The lookup of the agent needs the provider, because it searches only the provider's agents.
        self._provider = self._look_up_provider()
        self._agent = self._look_up_object(
            "agent", ApiCollection.AGENTS, {"name": request.agent_name, "tags": list(request.tags)}
        )
        #: The tokens that the agent has already and that have not expired.
        self.earlier_tokens = self._list_valid_tokens(self._agent.id) if self._agent.id else []

    @property
    def agent_id(self) -> str | None:
        """The agent's id; None if the agent does not exist yet."""
        return self._agent.id

    @property
    def must_create_token(self) -> bool:
        """True if the agent has no valid token, or if the request wants a new one. Then a token is created."""
        return self._request.wants_new_token or not self.earlier_tokens

    def create_missing(self, store_token: Callable[[str], object]) -> Iterator[BootstrapStep]:
        """Create the missing objects one by one, and yield a step for each object.

        `store_token` is called with the value of a new token before the step of the token is yielded.
        """
        for wanted_object in self._objects_in_creation_order():
            self._add_references(wanted_object)
            if wanted_object.existing_object is None:
                yield self._create_object(wanted_object)
            elif wanted_object is self._agent_type and self._must_extend_agent_type():
                wanted_object.existing_object = self._fulcrum.add_service_type_to_agent_type(
                    wanted_object.existing_object, str(self._service_type.id)
                )
                yield self._extended_agent_type_step()
            else:
                yield _step_of_existing_object(wanted_object)
        if self.must_create_token:
            expires_at = self._time_at_fulcrum() + self._request.token_lifetime
            store_token(self._fulcrum.create_agent_token(str(self._agent.id), self._request.agent_name, expires_at))
        yield self._token_step(ObjectStatus.CREATED)

    def dry_run(self) -> Iterator[BootstrapStep]:
        """Change nothing, and yield the steps of `create_missing`, with the status MISSING instead of CREATED."""
        for wanted_object in self._objects_in_creation_order():
            self._add_references(wanted_object)
            if wanted_object.existing_object is None:
                yield BootstrapStep(kind=wanted_object.kind, name=wanted_object.name, status=ObjectStatus.MISSING)
            elif wanted_object is self._agent_type and self._must_extend_agent_type():
                yield self._extended_agent_type_step()
            else:
                yield _step_of_existing_object(wanted_object)
        yield self._token_step(ObjectStatus.MISSING)

    def remove_earlier_tokens(self) -> None:
        """Delete `earlier_tokens` in FulcrumCore. The caller must have stored the new token before this call."""
        for token in self.earlier_tokens:
            self._fulcrum.delete_token(token.id)

    def _must_extend_agent_type(self) -> bool:
        """Return whether the agent type exists and lacks the service type."""
        agent_type = self._agent_type.existing_object
        current_ids = (agent_type.members_except_id_and_name.get("serviceTypeIds") or []) if agent_type else []
        return agent_type is not None and self._service_type.id not in current_ids

    def _extended_agent_type_step(self) -> BootstrapStep:
        """Return the step of the agent type that lacked the service type.

        The step contains only the differences that remain after the service type is added.
        """
        step = _step_of_existing_object(self._agent_type)
        differences = [text for text in step.differences if not text.startswith("serviceTypeIds lacks")]
        return replace(step, status=ObjectStatus.EXTENDED, differences=differences)

    def _objects_in_creation_order(self) -> list[_WantedObject]:
        """Return the wanted objects. Each refers only to objects before it, so they are created in this order."""
        return [self._service_type, self._agent_type, *self._metric_types, self._provider, self._agent]

    def _add_references(self, wanted_object: _WantedObject) -> None:
        """Add the ids of the objects that `wanted_object` refers to.

        In a dry run, some of these objects may not exist. Their ids are left out.
        """
        references: JsonObject = {}
        if wanted_object is self._agent_type and self._service_type.id:
            references = {"serviceTypeIds": [self._service_type.id]}
        elif wanted_object is self._agent:
            references = {"providerId": self._provider.id, "agentTypeId": self._agent_type.id}
        wanted_object.members |= {name: value for name, value in references.items() if value}

    def _create_object(self, wanted_object: _WantedObject) -> BootstrapStep:
        """Create the object. Raises FulcrumError if the object does not exist afterwards."""
        try:
            wanted_object.existing_object = self._fulcrum.create_object(wanted_object.collection, wanted_object.members)
        except FulcrumUnavailable:
            # The object may exist now: the response may have been lost, or another administrator may have created it.
            # FulcrumCore answers 500 if the name exists, and every 500 raises FulcrumUnavailable.
            wanted_object.existing_object = self._find_existing_object(wanted_object)
            if wanted_object.existing_object is None:
                raise
        return BootstrapStep(
            kind=wanted_object.kind, name=wanted_object.name, status=ObjectStatus.CREATED, id=wanted_object.id
        )

    def _token_step(self, status_if_needed: ObjectStatus) -> BootstrapStep:
        """Return the step of the agent's token, with `status_if_needed` if a token is needed, otherwise with FOUND."""
        status = status_if_needed if self.must_create_token else ObjectStatus.FOUND
        return BootstrapStep(kind="agent token", name=self._request.agent_name, status=status)

    def _look_up_object(self, kind: str, collection: ApiCollection, members: JsonObject) -> _WantedObject:
        """Return a wanted object together with the existing object of the same name, if there is one."""
        wanted_object = _WantedObject(kind=kind, collection=collection, members=dict(members))
        wanted_object.existing_object = self._find_existing_object(wanted_object)
        return wanted_object

    def _look_up_provider(self) -> _WantedObject:
        """Find the provider, which is a participant in FulcrumCore, by its id or by its name.

        Raises BootstrapRefused if the provider does not exist and must not be created.
        """
        id_or_name = self._request.provider_name_or_id
        wanted_object = _WantedObject(
            kind="provider", collection=ApiCollection.PARTICIPANTS, members={"name": id_or_name, "status": "Enabled"}
        )
        is_id = UUID_PATTERN.fullmatch(id_or_name) is not None
        if is_id:
            participants = self._fulcrum.list_objects(wanted_object.collection)
            wanted_object.existing_object = next((item for item in participants if item.id == id_or_name.lower()), None)
        else:
            wanted_object.existing_object = self._find_existing_object(wanted_object)
        if is_id and wanted_object.existing_object:
            # The request contains the id instead of the name.
            wanted_object.members["name"] = wanted_object.existing_object.name
        may_create = self._request.may_create_provider and not is_id
        if wanted_object.existing_object is None and not may_create:
            raise BootstrapRefused(
                f"FulcrumCore has no participant {id_or_name}: give the name or the id of an existing participant, "
                "or give a name and use --create-provider"
            )
        return wanted_object

    def _find_existing_object(self, wanted_object: _WantedObject) -> FulcrumObject | None:
        """Return the existing object that has the name of the wanted object; None if there is none.

        An agent is searched only among the provider's agents, because other providers may have an agent of this name.
        """
        objects = self._fulcrum.list_objects(wanted_object.collection)
        if wanted_object.collection is ApiCollection.AGENTS:
            objects = [
                item for item in objects if item.members_except_id_and_name.get("providerId") == self._provider.id
            ]
        return _find_only_object_with_name(wanted_object.name, wanted_object.kind, objects)

    def _list_valid_tokens(self, agent_id: str) -> list[FulcrumToken]:
        now = self._time_at_fulcrum()
        tokens = self._fulcrum.list_agent_tokens(agent_id)
        # If FulcrumCore's answer has no expiry time for a token, the token counts as expired.
        return [token for token in tokens if token.expire_at is not None and token.expire_at > now]

    def _time_at_fulcrum(self) -> datetime:
        """Return the current time of FulcrumCore's clock, in whole seconds."""
        return datetime.fromtimestamp(int(time.time() + self._fulcrum.clock_offset_s), UTC)


def _find_only_object_with_name(name: str, kind: str, objects: list[FulcrumObject]) -> FulcrumObject | None:
    """Return the object with this name; None if there is none. Raises BootstrapRefused if there are several."""
    objects_with_name = [item for item in objects if item.name == name]
    if len(objects_with_name) > 1:
        ids = ", ".join(item.id for item in objects_with_name)
        raise BootstrapRefused(
            f"FulcrumCore has {len(objects_with_name)} objects of the kind {kind} with the name {name}: rename "
            f"or delete all of them except one ({ids})"
        )
    return objects_with_name[0] if objects_with_name else None


def _step_of_existing_object(wanted_object: _WantedObject) -> BootstrapStep:
    """Return the step of an object that exists, with its differences from the wanted object."""
    existing_object = wanted_object.existing_object
    assert existing_object is not None  # noqa: S101  the caller has checked it
    # The names are equal: the object was found by its name, or the wanted name was taken from the object.
    wanted_members = {name: value for name, value in wanted_object.members.items() if name != "name"}
    differences = find_differences(wanted_members, existing_object.members_except_id_and_name)
    status = ObjectStatus.DIFFERS if differences else ObjectStatus.FOUND
    return BootstrapStep(
        kind=wanted_object.kind, name=wanted_object.name, status=status, id=wanted_object.id, differences=differences
    )


def read_type_file(file_name: str) -> JsonObject:
    """Read the definition of a type from a file in the folder `deploy`."""
    return dict(json.loads(find_deploy_file(file_name).read_text(encoding="utf-8")))
