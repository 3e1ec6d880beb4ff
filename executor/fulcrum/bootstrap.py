"""What FulcrumCore must have before an agent can work: both types, metric types, provider, agent and its token.

Everything is looked up first, so that what will be refused is refused before anything is made. What is there stays as
it is; a second run makes what is missing. Source: section 9.3 of the FulcrumCore reference.
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
    """FulcrumCore holds something that this cannot be built on: a person must decide. Nothing was made."""


class Status(StrEnum):
    """How one object stands."""

    FOUND = "found"  #: as we would make it
    DIFFERS = "differs"  #: there, with other content, and left as it is
    MADE = "made"
    MISSING = "missing"  #: a dry run would have made it


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an administrator asks for."""

    agent: str
    provider: str  #: its name or id
    may_make_provider: bool = False
    service_type: Json
    agent_type: Json
    tags: tuple[str, ...] = ("proxmox",)
    token_lifetime: timedelta
    wants_new_token: bool = False  #: even when the agent has one


@dataclass(frozen=True, kw_only=True)
class Step:
    """One object, looked at or made."""

    kind: str
    name: str
    status: Status
    id: str | None = None
    differences: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class _Part:
    """One object that is wanted: how to make it, and what is there under its name."""

    kind: str
    collection: Collection
    members: Json
    there: CoreObject | None = None

    @property
    def name(self) -> str:
        return str(self.members["name"])

    @property
    def id(self) -> str | None:
        return self.there.id if self.there else None


class Bootstrap:
    """One look at FulcrumCore, and what it lacks. `make` may be called once."""

    def __init__(self, core: FulcrumAdmin, wanted: Wanted) -> None:
        """Look everything up. Raises FulcrumError, BootstrapRefused."""
        self._core = core
        self._wanted = wanted
        self._service_type = self._look("service type", Collection.SERVICE_TYPES, wanted.service_type)
        self._agent_type = self._look("agent type", Collection.AGENT_TYPES, wanted.agent_type)
        self._metrics = [
            self._look("metric type", Collection.METRIC_TYPES, {"name": name, "entityType": "Resource"})
            for name in METRIC_TYPES
        ]
        self._provider = self._look_for_provider()
        self._agent = self._look("agent", Collection.AGENTS, {"name": wanted.agent, "tags": list(wanted.tags)})
        self._has_token = bool(self._agent.id) and self._live_tokens(str(self._agent.id)) > 0

    @property
    def agent_id(self) -> str | None:
        """The agent's id, None while it does not exist."""
        return self._agent.id

    @property
    def needs_token(self) -> bool:
        """Whether a token will be made: there is none that lives, or a new one is wanted."""
        return self._wanted.wants_new_token or not self._has_token

    def make(self, keep_token: Callable[[str], object]) -> Iterator[Step]:
        """Make what is missing, one by one; `keep_token` gets a new token's value before its step is told."""
        for part in self._parts():
            self._fill_in(part)
            yield self._made(part) if part.there is None else _found(part)
        if self.needs_token:
            expires_at = self._core_now() + self._wanted.token_lifetime
            keep_token(self._core.create_agent_token(str(self._agent.id), self._wanted.agent, expires_at))
        yield self._token_step(Status.MADE)

    def compare(self) -> Iterator[Step]:
        """Say what `make` would do, and make nothing."""
        for part in self._parts():
            self._fill_in(part)
            yield Step(kind=part.kind, name=part.name, status=Status.MISSING) if part.there is None else _found(part)
        yield self._token_step(Status.MISSING)

    def _parts(self) -> list[_Part]:
        """In the order in which they need each other."""
        return [self._service_type, self._agent_type, *self._metrics, self._provider, self._agent]

    def _fill_in(self, part: _Part) -> None:
        """Name what was found, or made before; a dry run makes nothing, so there is less to compare in it."""
        needed: Json = {}
        if part is self._agent_type:
            needed = {"serviceTypeIds": [self._service_type.id] if self._service_type.id else None}
        elif part is self._agent:
            needed = {"providerId": self._provider.id, "agentTypeId": self._agent_type.id}
        part.members |= {name: value for name, value in needed.items() if value}

    def _made(self, part: _Part) -> Step:
        try:
            part.there = self._core.create(part.collection, part.members)
        except FulcrumUnavailable:  # a lost reply, or somebody else at the same moment: then it is there by now
            part.there = self._find(part)
            if part.there is None:
                raise
        return Step(kind=part.kind, name=part.name, status=Status.MADE, id=part.id)

    def _token_step(self, new: Status) -> Step:
        return Step(kind="agent token", name=self._wanted.agent, status=new if self.needs_token else Status.FOUND)

    # --- looking --------------------------------------------------------------------------------------------------

    def _look(self, kind: str, collection: Collection, members: Json) -> _Part:
        part = _Part(kind=kind, collection=collection, members=dict(members))
        part.there = self._find(part)
        return part

    def _look_for_provider(self) -> _Part:
        """Find the participant by its id or name. Raises BootstrapRefused when there is none and none may be made."""
        asked = self._wanted.provider
        part = _Part(kind="provider", collection=Collection.PARTICIPANTS, members={"name": asked, "status": "Enabled"})
        if not UUID_TEXT.fullmatch(asked):
            part.there = self._find(part)
        elif found := [item for item in self._core.objects(part.collection) if item.id == asked.lower()]:
            part.there = found[0]
            part.members["name"] = found[0].name
        may_be_made = self._wanted.may_make_provider and not UUID_TEXT.fullmatch(asked)
        if part.there is None and not may_be_made:
            raise BootstrapRefused(
                f"FulcrumCore has no participant {asked}: name one that is there, or say --create-provider"
            )
        return part

    def _find(self, part: _Part) -> CoreObject | None:
        """Look the object up by its name; an agent among the provider's, because others may have the same names."""
        listed = self._core.objects(part.collection)
        if part.collection is Collection.AGENTS:
            listed = [item for item in listed if item.members.get("providerId") == self._provider.id]
        return _named(part.name, part.kind, listed)

    def _live_tokens(self, agent_id: str) -> int:
        tokens = self._core.tokens_of_agent(agent_id)
        return sum(token.expire_at is not None and token.expire_at > self._core_now() for token in tokens)

    def _core_now(self) -> datetime:
        return datetime.fromtimestamp(int(time.time() + self._core.clock_offset_s), UTC)


def _named(name: str, kind: str, listed: list[CoreObject]) -> CoreObject | None:
    """Return the one of that name. Raises BootstrapRefused when there are several: none is more right than another."""
    found = [item for item in listed if item.name == name]
    if len(found) > 1:
        ids = ", ".join(item.id for item in found)
        raise BootstrapRefused(f"FulcrumCore has {len(found)} objects of kind {kind} named {name}: {ids}")
    return found[0] if found else None


def _found(part: _Part) -> Step:
    there = part.there
    assert there is not None  # noqa: S101  the caller has looked
    others = differences({name: value for name, value in part.members.items() if name != "name"}, there.members)
    status = Status.DIFFERS if others else Status.FOUND
    return Step(kind=part.kind, name=part.name, status=status, id=part.id, differences=others)


def differences(wanted: Any, there: Any, path: str = "") -> list[str]:
    """Return where what is there is not what we would send, as paths.

    FulcrumCore adds members of its own to an object, which do not count, and leaves out what is empty, which counts as
    equal. More tags, and an agent type for more service types, than were wanted are no difference.
    """
    if isinstance(wanted, Mapping) and isinstance(there, Mapping):
        names = {**wanted, **there} if path else wanted
        inner = [(f"{path}.{name}".lstrip("."), wanted.get(name), there.get(name)) for name in names]
        return [other for place, one, another in inner for other in differences(one, another, place)]
    if path in ("tags", "serviceTypeIds") and isinstance(there, list):
        return [f"{path} lacks {item}" for item in wanted if item not in there]
    if isinstance(wanted, list) and isinstance(there, list) and len(wanted) == len(there):
        pairs = enumerate(zip(wanted, there, strict=True))
        return [other for place, (one, another) in pairs for other in differences(one, another, f"{path}[{place}]")]
    return [] if wanted == there or (_is_nothing(wanted) and _is_nothing(there)) else [path]


def _is_nothing(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def load_type(name: str) -> Json:
    """Read one of the types that ship, from the checkout's deploy/ or from where an installed wheel keeps it."""
    checkout = Path(__file__).resolve().parents[2] / "deploy" / name
    if checkout.is_file():
        return dict(json.loads(checkout.read_text(encoding="utf-8")))
    packaged = importlib.resources.files("executor") / "deploy" / name
    return dict(json.loads(packaged.read_text(encoding="utf-8")))
