"""Processes one API call: authenticates and authorizes the caller, decodes the body and runs the endpoint's handler.

The checks run in the order of the real server. First the token is checked (401 or 403), then the syntax of the id in
the path (400). Then the caller's role (403) and the body (400) are checked, in an order that depends on the endpoint.
The last check is whether the caller may access the object (403). The numbers in parentheses are the HTTP statuses of
failed checks.
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

# Sets of roles that an endpoint allows. USERS are all roles except that of an agent.
ANY_ROLE = frozenset({ADMIN, PARTICIPANT, AGENT})
USERS = frozenset({ADMIN, PARTICIPANT})
ADMINS = frozenset({ADMIN})
AGENTS = frozenset({AGENT})


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The owners of an object, which are participants and an agent. Only owners and admins may access the object."""

    participants: tuple[str | None, ...] = ()
    agent_id: str | None = None


@dataclass(kw_only=True)
class Call:
    """A request whose caller is authenticated."""

    store: Store
    identity: Token  #: the caller's token
    path: dict[str, str]  #: the path's parameters
    query: list[tuple[str, str]]
    body: Json = field(default_factory=dict)  #: the decoded members of the body

    @property
    def id(self) -> str:
        """The `{id}` in the path."""
        return self.path["id"]

    def may_access(self, scope: Scope) -> bool:
        """Return whether the caller may access an object with this scope.

        An admin may access every object. Another caller needs a token whose participant or agent is in the scope.
        """
        identity = self.identity
        if identity.role == ADMIN:
            return True
        by_participant = identity.participant_id is not None and identity.participant_id in scope.participants
        return by_participant or (identity.agent_id is not None and identity.agent_id == scope.agent_id)

    def record_event(self, kind: str, row: Any, payload: Json | None = None) -> None:
        """Add an event about this row to the event log; the caller is its initiator."""
        self.store.add_event(self.identity, kind, row, payload)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer that a handler returns, with JSON, a text or nothing as its body."""

    status: int = 200
    body: Any = None  #: the value to send as JSON, or None
    text: str | None = None  #: the text to send instead of JSON
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Reply]
NO_CONTENT = Reply(status=204)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Describes one HTTP method on one path: the roles that may call it, the members of its body, and its handler."""

    method: str
    path: str
    handler: Handler
    roles: frozenset[str]
    fields: decoding.Fields | None = None  #: the body's members; None: the body is ignored
    role_first: bool = False  #: check the role before the body, as the real server does for this endpoint
    #: A function that returns the scope of the object that the call reads, changes or creates. If the scope cannot be
    #: determined, for example because the object does not exist, it returns None (answered 403) or raises a Problem.
    scope: Callable[[Call], Scope | None] | None = None

    def handle(self, call: Call, raw: bytes) -> Reply:
        """Check the call, then run the handler. Raises Problem if a check fails."""
        if "id" in call.path:
            call.path["id"] = _canonical_id(call.path["id"])
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


def _canonical_id(text: str) -> str:
    """Return the canonical form of an id. Raises a 400 if it is not a UUID."""
    try:
        return decoding.read_uuid(text)
    except ValueError as exc:
        raise bad_request(f"invalid UUID {text!r}") from exc


def authenticate(store: Store, header: str | None) -> Token:
    """Return the caller's token. Raises Problem unless the header is `Bearer`, exactly one space and a valid token."""
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


def to_response(make_reply: Callable[[], Reply]) -> Response:
    """Call `make_reply` and render the reply. An unexpected exception becomes a 500 without a body, like a Go panic."""
    try:
        reply = make_reply()
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
    """Render an error. The content type of its JSON is text/plain, because the real server sets the type too late."""
    if problem.body is None:
        return Response(status_code=problem.status)
    return Response(to_json(problem.body), problem.status, media_type="text/plain")


def to_json(value: Any) -> str:
    """Encode a value as the real server does, without spaces and with a line break at the end."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
