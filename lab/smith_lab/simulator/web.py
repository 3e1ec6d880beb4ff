"""Processes one API call: authenticates and authorizes the caller, decodes the body and runs the endpoint's handler.

The checks run in the same order as in FulcrumCore. The numbers in parentheses are the HTTP statuses of failed checks:
  1. the token (401 or 403)
  2. the syntax of the id in the path (400)
  3. the caller's role (403) and the body (400), in an order that depends on the endpoint
  4. whether the caller may access the object (403)
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from smith_lab.simulator import decoding, query_string
from smith_lab.simulator.problems import ErrorAnswer, bad_request, forbidden, internal_error, panic_answer, unauthorized
from smith_lab.simulator.rows import Job, Json, Service, Token
from smith_lab.simulator.store import Store, payload_of_change

#: How long a call waits between reading and changing rows if the switch `simultaneous_requests_all_succeed` is on.
#: The switch imitates an error of FulcrumCore: if calls arrive at the same time, each of them reads the rows before the
#: others change them, so all calls succeed.
RACE_WINDOW_S = 0.2

log = logging.getLogger(__name__)

# The roles of callers. A participant in FulcrumCore is a provider or a consumer of services.
ADMIN, PARTICIPANT, AGENT = "admin", "participant", "agent"

# Sets of roles for the member `roles` of an endpoint: the roles that may call the endpoint.
ANY_ROLE = frozenset({ADMIN, PARTICIPANT, AGENT})
ADMINS_AND_PARTICIPANTS = frozenset({ADMIN, PARTICIPANT})  # all roles except the agents
ADMINS = frozenset({ADMIN})
AGENTS = frozenset({AGENT})


@dataclass(frozen=True, kw_only=True)
class Owners:
    """The owners of an object: participants and an agent. Only owners and admins may access the object."""

    participant_ids: tuple[str | None, ...] = ()  #: a None matches no participant
    agent_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class RowCopies:
    """Copies of rows: a service, its active job, and the job that the path of the call names.

    The active job of a service is its newest job, if this job is pending or processing.
    """

    service: Service | None
    active_job: Job | None
    job: Job | None


@dataclass(kw_only=True)
class Call:
    """A request whose caller is authenticated."""

    store: Store
    caller_token: Token
    path_params: dict[str, str]  #: the path's parameters, such as `id`
    query: list[tuple[str, str]]
    body: Json = field(default_factory=dict)  #: the decoded members of the body
    #: The rows that the call read when it arrived, if the switch `simultaneous_requests_all_succeed` is on.
    row_copies: RowCopies | None = None

    @property
    def id(self) -> str:
        """The `{id}` in the path. If the path has no id, raises a 500 without a body, because FulcrumCore panics."""
        if "id" not in self.path_params:
            raise panic_answer()
        return self.path_params["id"]

    def may_access(self, owners: Owners) -> bool:
        """Return whether the caller may access an object with these owners.

        An admin may access every object. Another caller needs a token whose participant or agent is an owner.
        """
        token = self.caller_token
        if token.role == ADMIN:
            return True
        is_owned_by_participant = token.participant_id is not None and token.participant_id in owners.participant_ids
        is_owned_by_agent = token.agent_id is not None and token.agent_id == owners.agent_id
        return is_owned_by_participant or is_owned_by_agent

    def copy_rows(self) -> None:
        """Copy the rows to which the path refers, so that changes by other calls do not affect this call."""
        job = self.store.jobs.get(self.path_params.get("id", ""))
        service = self.store.services.get(job.service_id if job else self.path_params.get("id", ""))
        active_job = self.store.active_job(service.id) if service else None
        self.row_copies = RowCopies(service=copy.copy(service), active_job=copy.copy(active_job), job=copy.copy(job))

    def job_at_request(self, job: Job) -> Job:
        """Return the copy of the job that was made when the call arrived. Without a copy, return the job itself."""
        return self.row_copies.job if self.row_copies and self.row_copies.job else job

    def service_at_request(self, service: Service) -> Service:
        """Return the copy of the service that was made when the call arrived. Without a copy, return the service."""
        return self.row_copies.service if self.row_copies and self.row_copies.service else service

    def active_job_at_request(self, service: Service) -> Job | None:
        """Return the copy of the service's active job that was made when the call arrived.

        If the call has copied no rows, return the active job. If the service has no active job, return None.
        """
        return self.row_copies.active_job if self.row_copies else self.store.active_job(service.id)

    def record_event(self, event_type: str, row: Any) -> None:
        """Add an event about this row to the event log. The caller is the event's initiator."""
        self.store.add_event(self.caller_token, event_type, row)

    def record_change(self, event_type: str, json_before: Json, row: Any) -> None:
        """Add an event about a change of this row.

        `json_before` is the row's JSON before the change. The function `entities.json_for_events` makes this JSON.
        The event contains the difference between the old and the new JSON.
        """
        self.store.add_event(self.caller_token, event_type, row, payload_of_change(json_before, row))


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer that a handler returns. Its body is JSON (`body`), a text (`text`) or empty."""

    status: int = 200
    body: Any = None  #: the value to send as JSON, or None
    text: str | None = None  #: the text to send instead of JSON
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Reply]
NO_CONTENT = Reply(status=204)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One HTTP method on one path, with the roles that may call it, the members of its body, and its handler."""

    method: str
    path: str
    handler: Handler
    roles: frozenset[str]
    fields: decoding.Fields | None = None  #: names and types of the body's members; None: the body is ignored
    checks_role_before_body: bool = False  #: whether FulcrumCore checks the role before the body
    #: Returns the owners of the object that the call reads, changes or creates. Returns None if the call must be
    #: answered 403, for example because an object that the request names does not exist.
    find_owners: Callable[[Call], Owners | None] | None = None

    def handle(self, call: Call, raw_body: bytes) -> Reply:
        """Check the call, then run the handler. Raises ErrorAnswer if a check fails."""
        if "id" in call.path_params:
            call.path_params["id"] = _canonical_id(call.path_params["id"])
        if self.checks_role_before_body:
            self._check_role(call)
        if self.fields is not None:
            call.body = decoding.decode(raw_body, self.fields)
        self._check_role(call)  # passes if the role was checked above
        if self.find_owners is not None:
            owners = self.find_owners(call)
            if owners is None or not call.may_access(owners):
                raise forbidden()
        if decoding.contains_nul(call.body):
            raise internal_error("unsupported Unicode escape sequence (SQLSTATE 22P05)")  # PostgreSQL stores no NUL
        return self.handler(call)

    def _check_role(self, call: Call) -> None:
        if call.caller_token.role not in self.roles:
            raise forbidden()


def _canonical_id(text: str) -> str:
    """Return the canonical form of an id. Raises a 400 if the id is not a UUID."""
    try:
        return decoding.read_uuid(text)
    except ValueError as exc:
        raise bad_request(f"invalid UUID {text!r}") from exc


def authenticate(store: Store, header: str | None) -> Token:
    """Return the caller's token.

    Raises ErrorAnswer unless the Authorization header consists of `Bearer`, exactly one space and a valid token.
    """
    value = (header or "").removeprefix("Bearer ")
    if not header or not header.startswith("Bearer ") or not value.strip():
        raise unauthorized()
    token = store.find_token(value)
    if token is None:
        raise forbidden("invalid token")
    return token


def starlette_handler(store: Store, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """Return a Starlette handler for an endpoint. It runs the endpoint's handler under the store's lock."""

    async def respond(request: Request) -> Response:
        raw_body = await request.body()
        call = Call(
            store=store,
            caller_token=request.state.caller_token,
            path_params=dict(request.path_params),
            query=query_string.parse(request.scope["query_string"]),
        )
        if store.switches.simultaneous_requests_all_succeed and request.method != "GET":
            with store.lock:
                call.copy_rows()
            await asyncio.sleep(RACE_WINDOW_S)
        with store.lock:
            return to_response(lambda: endpoint.handle(call, raw_body))

    return respond


def to_response(make_reply: Callable[[], Reply]) -> Response:
    """Call `make_reply` and render the reply. Answer an unexpected exception as FulcrumCore answers a Go panic."""
    try:
        reply = make_reply()
    except ErrorAnswer as error_answer:
        return error_response(error_answer)
    except Exception:
        log.exception("simulator handler failed")
        return error_response(panic_answer())
    if reply.text is not None:
        return Response(reply.text, reply.status, headers=reply.headers)
    if reply.body is None:
        return Response(status_code=reply.status, headers=reply.headers)
    return Response(to_json(reply.body), reply.status, headers=reply.headers, media_type="application/json")


def error_response(error_answer: ErrorAnswer) -> Response:
    """Render an error answer. Its content type is text/plain, as in FulcrumCore, although its body is JSON."""
    if error_answer.body is None:
        return Response(status_code=error_answer.status)
    return Response(to_json(error_answer.body), error_answer.status, media_type="text/plain")


def to_json(value: Any) -> str:
    """Encode a value as FulcrumCore does, without spaces and with a line break at the end."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
