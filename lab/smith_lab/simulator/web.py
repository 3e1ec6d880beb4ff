"""One API call: authentication, authorization, body, handler. A handler gets a Call and returns a Reply.

Order of checks, as in the real server: token (401, 403), id syntax (400), then role (403) and body (400) in the
route's own order, then the object's scope (403), then the handler.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from smith_lab.simulator import decoding
from smith_lab.simulator.problems import Problem, bad_request, forbidden, panic, unauthorized
from smith_lab.simulator.rows import Json, Token
from smith_lab.simulator.store import Store

log = logging.getLogger(__name__)

ADMIN, PARTICIPANT, AGENT = "admin", "participant", "agent"
ANY_ROLE = frozenset({ADMIN, PARTICIPANT, AGENT})
USERS = frozenset({ADMIN, PARTICIPANT})
ADMINS = frozenset({ADMIN})
AGENTS = frozenset({AGENT})


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The participants and the agent that own an object."""

    participants: tuple[str | None, ...] = ()
    agent_id: str | None = None


@dataclass(kw_only=True)
class Call:
    """A request that passed authentication."""

    store: Store
    identity: Token
    path: dict[str, str]
    query: list[tuple[str, str]]
    body: Json = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.path["id"]

    def may_access(self, scope: Scope) -> bool:
        """Return whether the caller may access an object: an admin any, others one of their participant or agent."""
        identity = self.identity
        if identity.role == ADMIN:
            return True
        by_participant = identity.participant_id is not None and identity.participant_id in scope.participants
        return by_participant or (identity.agent_id is not None and identity.agent_id == scope.agent_id)

    def event(self, kind: str, row: Any, payload: Json | None = None) -> None:
        self.store.add_event(self.identity, kind, row, payload)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A handler's answer. `body` None: no body."""

    status: int = 200
    body: Any = None
    text: str | None = None  #: sent unchanged, instead of JSON
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Reply]
NO_CONTENT = Reply(status=204)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One method on one path."""

    method: str
    path: str
    handler: Handler
    roles: frozenset[str]
    fields: decoding.Fields | None = None  #: None: the body is not read
    role_first: bool = False  #: the real server checks this route's role before it reads the body
    #: Returns the object's scope. Without such an object it raises, or returns None, which is a 403 too.
    scope: Callable[[Call], Scope | None] | None = None

    def handle(self, call: Call, raw: bytes) -> Reply:
        if "id" in call.path:
            call.path["id"] = _checked_id(call.path["id"])
        if self.role_first:
            self._check_role(call)
        if self.fields is not None:
            call.body = decoding.decode(raw, self.fields)
        self._check_role(call)
        if self.scope is not None:
            scope = self.scope(call)
            if scope is None or not call.may_access(scope):
                raise forbidden()
        return self.handler(call)

    def _check_role(self, call: Call) -> None:
        if call.identity.role not in self.roles:
            raise forbidden()


def _checked_id(text: str) -> str:
    try:
        return decoding.read_uuid(text)
    except ValueError as exc:
        raise bad_request(f"invalid UUID {text!r}") from exc


def authenticate(store: Store, header: str | None) -> Token:
    """Return the caller's token. The scheme is case-sensitive, followed by exactly one space."""
    if not header or not header.startswith("Bearer ") or not header.removeprefix("Bearer ").strip():
        raise unauthorized()
    token = store.find_token(header.removeprefix("Bearer "))
    if token is None:
        raise forbidden("invalid token")
    return token


def asgi_endpoint(store: Store, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """Wrap an endpoint for Starlette. The handler runs under the store's lock."""

    async def respond(request: Request) -> Response:
        raw = await request.body()
        call = Call(
            store=store,
            identity=request.state.identity,
            path=dict(request.path_params),
            query=request.query_params.multi_items(),
        )
        with store.lock:
            return to_response(lambda: endpoint.handle(call, raw))

    return respond


def to_response(act: Callable[[], Reply]) -> Response:
    """Run a handler and render its reply. An unexpected exception is a panic: 500 without a body."""
    try:
        reply = act()
    except Problem as problem:
        return problem_response(problem)
    except Exception:
        log.exception("simulator handler failed")
        return problem_response(panic())
    if reply.text is not None:
        return Response(reply.text, reply.status, headers=reply.headers)
    if reply.body is None:
        return Response(status_code=reply.status, headers=reply.headers)
    return Response(to_json(reply.body), reply.status, headers=reply.headers, media_type="application/json")


def problem_response(problem: Problem) -> Response:
    """Render an error: JSON, but with the type text/plain, since the real server sets the type too late."""
    if problem.body is None:
        return Response(status_code=problem.status)
    return Response(to_json(problem.body), problem.status, media_type="text/plain")


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
