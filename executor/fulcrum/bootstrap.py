"""Creates in FulcrumCore what an agent needs: service type, agent type, metric types, provider, agent and its token.

All objects are looked up first, so that a refusal comes before anything is created. Existing objects are not changed; a
second run creates those that are missing.
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
    """FulcrumCore's objects do not allow it: an administrator must decide. Nothing was created."""


class Status(StrEnum):
    """The state of one object."""

    FOUND = "found"  #: it exists, with the wanted content
    DIFFERS = "differs"  #: it exists with other content, and was not changed
    MADE = "made"  #: it was created
    MISSING = "missing"  #: it does not exist; without --dry-run it would be created


@dataclass(frozen=True, kw_only=True)
class BootstrapRequest:
    """The objects that an administrator wants."""

    agent: str
    provider: str  #: its name or id
    may_create_provider: bool = False
    service_type: Json
    agent_type: Json
    tags: tuple[str, ...] = ("proxmox",)
    token_lifetime: timedelta
    wants_new_token: bool = False  #: even if the agent has a valid one


@dataclass(frozen=True, kw_only=True)
class Step:
    """One object, compared or created."""

    kind: str
    name: str
    status: Status
    id: str | None = None
    differences: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class _WantedObject:
    """One wanted object: its content, and the existing object of that name."""

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
    """Compares FulcrumCore with a request and creates what is missing. `create_missing` may be called once."""

    def __init__(self, core: FulcrumAdmin, wanted: BootstrapRequest) -> None:
        """Find all existing objects. Raises FulcrumError, BootstrapRefused."""
        self._core = core
        self._wanted = wanted
        self._service_type = self._want("service type", Collection.SERVICE_TYPES, wanted.service_type)
        self._agent_type = self._want("agent type", Collection.AGENT_TYPES, wanted.agent_type)
        self._metrics = [
            self._want("metric type", Collection.METRIC_TYPES, {"name": name, "entityType": "Resource"})
            for name in METRIC_TYPES
        ]
        self._provider = self._want_provider()
        self._agent = self._want("agent", Collection.AGENTS, {"name": wanted.agent, "tags": list(wanted.tags)})
        self._has_token = bool(self._agent.id) and self._valid_tokens(str(self._agent.id)) > 0

    @property
    def agent_id(self) -> str | None:
        """The agent's id; None if it does not exist yet."""
        return self._agent.id

    @property
    def needs_token(self) -> bool:
        """Whether a token will be created: the agent has no valid one, or a new one is wanted."""
        return self._wanted.wants_new_token or not self._has_token

    def create_missing(self, store_token: Callable[[str], object]) -> Iterator[Step]:
        """Create the missing objects one by one; `store_token` gets a new token's value before its step is yielded."""
        for part in self._parts():
            self._add_references(part)
            yield self._create(part) if part.existing is None else _compared(part)
        if self.needs_token:
            expires_at = self._core_now() + self._wanted.token_lifetime
            store_token(self._core.create_agent_token(str(self._agent.id), self._wanted.agent, expires_at))
        yield self._token_step(Status.MADE)

    def dry_run(self) -> Iterator[Step]:
        """Yield what `create_missing` would do, and create nothing."""
        for part in self._parts():
            self._add_references(part)
            yield (
                Step(kind=part.kind, name=part.name, status=Status.MISSING)
                if part.existing is None
                else _compared(part)
            )
        yield self._token_step(Status.MISSING)

    def _parts(self) -> list[_WantedObject]:
        """Return the objects in the order in which they are created: each refers to earlier ones only."""
        return [self._service_type, self._agent_type, *self._metrics, self._provider, self._agent]

    def _add_references(self, part: _WantedObject) -> None:
        """Add the ids of the objects that this one refers to. In a dry run those to be created have no id yet."""
        references: Json = {}
        if part is self._agent_type:
            references = {"serviceTypeIds": [self._service_type.id] if self._service_type.id else None}
        elif part is self._agent:
            references = {"providerId": self._provider.id, "agentTypeId": self._agent_type.id}
        part.members |= {name: value for name, value in references.items() if value}

    def _create(self, part: _WantedObject) -> Step:
        try:
            part.existing = self._core.create(part.collection, part.members)
        except FulcrumUnavailable:  # the response was lost, or another administrator created it: then it exists now
            part.existing = self._find(part)
            if part.existing is None:
                raise
        return Step(kind=part.kind, name=part.name, status=Status.MADE, id=part.id)

    def _token_step(self, new: Status) -> Step:
        return Step(kind="agent token", name=self._wanted.agent, status=new if self.needs_token else Status.FOUND)

    def _want(self, kind: str, collection: Collection, members: Json) -> _WantedObject:
        part = _WantedObject(kind=kind, collection=collection, members=dict(members))
        part.existing = self._find(part)
        return part

    def _want_provider(self) -> _WantedObject:
        """Find the participant by its id or name. Raises BootstrapRefused if there is none and none may be created."""
        id_or_name = self._wanted.provider
        part = _WantedObject(
            kind="provider", collection=Collection.PARTICIPANTS, members={"name": id_or_name, "status": "Enabled"}
        )
        if not UUID_TEXT.fullmatch(id_or_name):
            part.existing = self._find(part)
        elif found := [item for item in self._core.objects(part.collection) if item.id == id_or_name.lower()]:
            part.existing = found[0]
            part.members["name"] = found[0].name
        may_create = self._wanted.may_create_provider and not UUID_TEXT.fullmatch(id_or_name)
        if part.existing is None and not may_create:
            raise BootstrapRefused(
                f"FulcrumCore has no participant {id_or_name}: name an existing one, or use --create-provider"
            )
        return part

    def _find(self, part: _WantedObject) -> CoreObject | None:
        """Find the object by its name; an agent only among those of the provider: other providers may use its name."""
        listed = self._core.objects(part.collection)
        if part.collection is Collection.AGENTS:
            listed = [item for item in listed if item.members.get("providerId") == self._provider.id]
        return _named(part.name, part.kind, listed)

    def _valid_tokens(self, agent_id: str) -> int:
        tokens = self._core.tokens_of_agent(agent_id)
        return sum(token.expire_at is not None and token.expire_at > self._core_now() for token in tokens)

    def _core_now(self) -> datetime:
        return datetime.fromtimestamp(int(time.time() + self._core.clock_offset_s), UTC)


def _named(name: str, kind: str, listed: list[CoreObject]) -> CoreObject | None:
    """Return the object of that name, None if there is none. Raises BootstrapRefused if there are several."""
    found = [item for item in listed if item.name == name]
    if len(found) > 1:
        ids = ", ".join(item.id for item in found)
        raise BootstrapRefused(f"FulcrumCore has {len(found)} objects of kind {kind} named {name}: {ids}")
    return found[0] if found else None


def _compared(part: _WantedObject) -> Step:
    existing = part.existing
    assert existing is not None  # noqa: S101  the caller has checked it
    others = differences({name: value for name, value in part.members.items() if name != "name"}, existing.members)
    status = Status.DIFFERS if others else Status.FOUND
    return Step(kind=part.kind, name=part.name, status=status, id=part.id, differences=others)


def differences(wanted: Any, existing: Any, path: str = "") -> list[str]:
    """Return the paths at which an existing object differs from the wanted one.

    Members that only FulcrumCore's object has at the top level are ignored, and a missing member equals an empty one.
    More tags or service types than wanted are no difference.
    """
    if isinstance(wanted, Mapping) and isinstance(existing, Mapping):
        names = {**wanted, **existing} if path else wanted
        inner = [(f"{path}.{name}".lstrip("."), wanted.get(name), existing.get(name)) for name in names]
        return [other for inner_path, ours, theirs in inner for other in differences(ours, theirs, inner_path)]
    if path in ("tags", "serviceTypeIds") and isinstance(existing, list):
        return [f"{path} lacks {item}" for item in wanted if item not in existing]
    if isinstance(wanted, list) and isinstance(existing, list) and len(wanted) == len(existing):
        pairs = enumerate(zip(wanted, existing, strict=True))
        return [other for index, (ours, theirs) in pairs for other in differences(ours, theirs, f"{path}[{index}]")]
    return [] if wanted == existing or (_is_empty(wanted) and _is_empty(existing)) else [path]


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def load_type(name: str) -> Json:
    """Read a type definition from deploy/, in a checkout or in an installed wheel."""
    checkout = Path(__file__).resolve().parents[2] / "deploy" / name
    if checkout.is_file():
        return dict(json.loads(checkout.read_text(encoding="utf-8")))
    packaged = importlib.resources.files("executor") / "deploy" / name
    return dict(json.loads(packaged.read_text(encoding="utf-8")))
