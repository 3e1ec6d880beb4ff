"""Creates the objects that an agent needs in FulcrumCore: types, metric types, provider, agent and token.

This module reads all existing objects first. So if it must refuse a request, it has not created anything yet. It never
changes an existing object. If it runs again, it creates only those objects that are still missing.
"""

from __future__ import annotations

import importlib.resources
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from executor.errors import FulcrumUnavailable, SmithError
from executor.fulcrum.admin import Collection, CoreObject, FulcrumAdmin
from executor.fulcrum.types import METRIC_TYPES, UUID_TEXT

SERVICE_TYPE_FILE = "service-type-vm.json"
CONTAINER_TYPE_FILE = "service-type-container.json"
AGENT_TYPE_FILE = "agent-type-proxmox.json"

Json = dict[str, Any]


class BootstrapRefused(SmithError):
    """FulcrumCore's objects do not fit the request, so an administrator must decide. Nothing was created."""


class Status(StrEnum):
    """The state of one object in FulcrumCore."""

    FOUND = "found"  #: the object exists with the wanted content
    DIFFERS = "differs"  #: the object exists with other content, and was not changed
    MADE = "made"  #: the object did not exist and was created
    MISSING = "missing"  #: the object does not exist, and was not created because of --dry-run


@dataclass(frozen=True, kw_only=True)
class BootstrapRequest:
    """The objects that the administrator wants to exist in FulcrumCore."""

    agent: str  #: name of the agent
    provider: str  #: name or id of the participant that provides the services
    may_create_provider: bool = False
    service_type: Json  #: content of the service type
    agent_type: Json  #: content of the agent type
    tags: tuple[str, ...] = ("proxmox",)  #: tags of the agent
    token_lifetime: timedelta
    wants_new_token: bool = False  #: create a token even if the agent has a valid one


@dataclass(frozen=True, kw_only=True)
class Step:
    """The state of one object after it was compared or created."""

    kind: str  #: such as `agent type`
    name: str
    status: Status
    id: str | None = None
    differences: list[str] = field(
        default_factory=list
    )  #: paths of members at which an existing object differs from the wanted one


@dataclass(kw_only=True)
class _WantedObject:
    """One wanted object. `members` is its wanted content, `existing` the object of its name in FulcrumCore, if any."""

    kind: str
    collection: Collection
    members: Json
    existing: CoreObject | None = None

    @property
    def name(self) -> str:
        return str(self.members["name"])

    @property
    def id(self) -> str | None:
        return self.existing.id if self.existing else None


class Bootstrap:
    """Compares the objects in FulcrumCore with a request, and creates the missing ones.

    `create_missing` may be called once only.
    """

    def __init__(self, core: FulcrumAdmin, request: BootstrapRequest) -> None:
        """Find all objects that exist already. Raises FulcrumError, BootstrapRefused."""
        self._core = core
        self._request = request
        self._service_type = self._wanted_object("service type", Collection.SERVICE_TYPES, request.service_type)
        self._agent_type = self._wanted_object("agent type", Collection.AGENT_TYPES, request.agent_type)
        self._metrics = [
            self._wanted_object("metric type", Collection.METRIC_TYPES, {"name": name, "entityType": "Resource"})
            for name in METRIC_TYPES
        ]
        self._provider = self._wanted_provider()
        self._agent = self._wanted_object(
            "agent", Collection.AGENTS, {"name": request.agent, "tags": list(request.tags)}
        )
        self._has_token = bool(self._agent.id) and self._count_valid_tokens(str(self._agent.id)) > 0

    @property
    def agent_id(self) -> str | None:
        """The agent's id; None if the agent does not exist yet."""
        return self._agent.id

    @property
    def needs_token(self) -> bool:
        """Whether a token will be created: the agent has no valid token, or the request wants a new one."""
        return self._request.wants_new_token or not self._has_token

    def create_missing(self, store_token: Callable[[str], object]) -> Iterator[Step]:
        """Create the missing objects one by one, and yield a step for each object.

        `store_token` is called with the value of a new token before the step of the token is yielded.
        """
        for wanted in self._objects():
            self._add_references(wanted)
            yield self._create(wanted) if wanted.existing is None else _comparison(wanted)
        if self.needs_token:
            expires_at = self._core_now() + self._request.token_lifetime
            store_token(self._core.create_agent_token(str(self._agent.id), self._request.agent, expires_at))
        yield self._token_step(Status.MADE)

    def dry_run(self) -> Iterator[Step]:
        """Yield the steps of `create_missing`, but create nothing."""
        for wanted in self._objects():
            self._add_references(wanted)
            if wanted.existing is None:
                yield Step(kind=wanted.kind, name=wanted.name, status=Status.MISSING)
            else:
                yield _comparison(wanted)
        yield self._token_step(Status.MISSING)

    def _objects(self) -> list[_WantedObject]:
        """Return the objects in the order in which they are created. Each one refers only to objects before it."""
        return [self._service_type, self._agent_type, *self._metrics, self._provider, self._agent]

    def _add_references(self, wanted: _WantedObject) -> None:
        """Add the ids of those objects that `wanted` refers to.

        In a dry run, an object that does not exist has no id. Then no id is added.
        """
        references: Json = {}
        if wanted is self._agent_type:
            references = {"serviceTypeIds": [self._service_type.id] if self._service_type.id else None}
        elif wanted is self._agent:
            references = {"providerId": self._provider.id, "agentTypeId": self._agent_type.id}
        wanted.members |= {name: value for name, value in references.items() if value}

    def _create(self, wanted: _WantedObject) -> Step:
        """Create the object. Raises FulcrumError if it does not exist afterwards."""
        try:
            wanted.existing = self._core.create(wanted.collection, wanted.members)
        except FulcrumUnavailable:
            # The object exists now if only the response was lost, or if another administrator has created it.
            wanted.existing = self._find(wanted)
            if wanted.existing is None:
                raise
        return Step(kind=wanted.kind, name=wanted.name, status=Status.MADE, id=wanted.id)

    def _token_step(self, status_if_needed: Status) -> Step:
        """Return the step of the token: with this status if a token is needed, otherwise with FOUND."""
        status = status_if_needed if self.needs_token else Status.FOUND
        return Step(kind="agent token", name=self._request.agent, status=status)

    def _wanted_object(self, kind: str, collection: Collection, members: Json) -> _WantedObject:
        """Return a wanted object with the existing object of its name, if there is one."""
        wanted = _WantedObject(kind=kind, collection=collection, members=dict(members))
        wanted.existing = self._find(wanted)
        return wanted

    def _wanted_provider(self) -> _WantedObject:
        """Find the provider, which is a participant of FulcrumCore, by its id or its name.

        Raises BootstrapRefused if it does not exist and must not be created.
        """
        id_or_name = self._request.provider
        wanted = _WantedObject(
            kind="provider", collection=Collection.PARTICIPANTS, members={"name": id_or_name, "status": "Enabled"}
        )
        if not UUID_TEXT.fullmatch(id_or_name):
            wanted.existing = self._find(wanted)
        elif found := [item for item in self._core.objects(wanted.collection) if item.id == id_or_name.lower()]:
            wanted.existing = found[0]
            wanted.members["name"] = found[0].name
        may_create = self._request.may_create_provider and not UUID_TEXT.fullmatch(id_or_name)
        if wanted.existing is None and not may_create:
            raise BootstrapRefused(
                f"FulcrumCore has no participant {id_or_name}: name an existing one, or use --create-provider"
            )
        return wanted

    def _find(self, wanted: _WantedObject) -> CoreObject | None:
        """Find the existing object by its name; None if there is none.

        An agent is searched only among the provider's agents, because other providers may have an agent of this name.
        """
        listed = self._core.objects(wanted.collection)
        if wanted.collection is Collection.AGENTS:
            listed = [item for item in listed if item.members.get("providerId") == self._provider.id]
        return _find_by_name(wanted.name, wanted.kind, listed)

    def _count_valid_tokens(self, agent_id: str) -> int:
        tokens = self._core.tokens_of_agent(agent_id)
        return sum(token.expire_at is not None and token.expire_at > self._core_now() for token in tokens)

    def _core_now(self) -> datetime:
        """Return the present time of FulcrumCore's clock, in whole seconds."""
        return datetime.fromtimestamp(int(time.time() + self._core.clock_offset_s), UTC)


def _find_by_name(name: str, kind: str, listed: list[CoreObject]) -> CoreObject | None:
    """Return the object with this name; None if there is none. Raises BootstrapRefused if there are several."""
    found = [item for item in listed if item.name == name]
    if len(found) > 1:
        ids = ", ".join(item.id for item in found)
        raise BootstrapRefused(f"FulcrumCore has {len(found)} objects of kind {kind} named {name}: {ids}")
    return found[0] if found else None


def _comparison(wanted: _WantedObject) -> Step:
    """Return the step of an object that exists, with its differences from the wanted object."""
    existing = wanted.existing
    assert existing is not None  # noqa: S101  the caller has checked it
    paths = differences({name: value for name, value in wanted.members.items() if name != "name"}, existing.members)
    status = Status.DIFFERS if paths else Status.FOUND
    return Step(kind=wanted.kind, name=wanted.name, status=status, id=wanted.id, differences=paths)


def differences(wanted: Any, existing: Any, path: str = "") -> list[str]:
    """Return the paths of the members at which an existing object differs from the wanted one.

    Members at the top level that only the existing object has are ignored. A missing member equals an empty one. Tags
    and service types that only the existing object has are no difference. `path` is the path of the compared values in
    the whole object.
    """
    if isinstance(wanted, Mapping) and isinstance(existing, Mapping):
        names = {**wanted, **existing} if path else wanted
        members = [(f"{path}.{name}".lstrip("."), wanted.get(name), existing.get(name)) for name in names]
        return [
            difference
            for member_path, wanted_value, existing_value in members
            for difference in differences(wanted_value, existing_value, member_path)
        ]
    if path in ("tags", "serviceTypeIds") and isinstance(existing, list):
        return [f"{path} lacks {item}" for item in wanted if item not in existing]
    if isinstance(wanted, list) and isinstance(existing, list) and len(wanted) == len(existing):
        pairs = enumerate(zip(wanted, existing, strict=True))
        return [
            difference
            for index, (wanted_item, existing_item) in pairs
            for difference in differences(wanted_item, existing_item, f"{path}[{index}]")
        ]
    return [] if wanted == existing or (_is_empty(wanted) and _is_empty(existing)) else [path]


def _is_empty(value: Any) -> bool:
    """Return whether a member with this value equals a missing member. The number 0 does not."""
    return value is None or value is False or value in ("", [], {})


def load_type(name: str) -> Json:
    """Read the definition of a type from the file `name` in the folder `deploy`.

    The folder is in the checkout or in the installed package.
    """
    checkout = Path(__file__).resolve().parents[2] / "deploy" / name
    if checkout.is_file():
        return dict(json.loads(checkout.read_text(encoding="utf-8")))
    packaged = importlib.resources.files("executor") / "deploy" / name
    return dict(json.loads(packaged.read_text(encoding="utf-8")))
