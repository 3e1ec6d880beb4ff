"""Routes calls below /api/v1 to the endpoints, and refuses unknown paths and methods as FulcrumCore does."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from smith_lab.simulator.endpoints import (
    agent_types,
    agents,
    events,
    groups,
    install,
    jobs,
    metrics,
    options,
    participants,
    pools,
    service_types,
    services,
    tokens,
    vault,
)
from smith_lab.simulator.problems import ErrorAnswer
from smith_lab.simulator.store import Store
from smith_lab.simulator.web import Endpoint, authenticate, error_response, starlette_handler

API_PREFIX = "/api/v1"

_ENDPOINT_MODULES = (
    jobs,
    services,
    install,
    agents,
    participants,
    tokens,
    groups,
    service_types,
    agent_types,
    metrics,
    options,
    vault,
    events,
    pools,
)
ENDPOINTS: list[Endpoint] = [endpoint for module in _ENDPOINT_MODULES for endpoint in module.ENDPOINTS]


class Api:
    """Authenticates each call, then routes it.

    Because of this order, a call without a valid token is answered 401 or 403 even if its path does not exist.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._router: ASGIApp = Router(_routes(store, ENDPOINTS), redirect_slashes=False, default=_answer_unknown_path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            with self._store.lock:
                token = authenticate(self._store, request.headers.get("authorization"))
        except ErrorAnswer as error_answer:
            response = error_response(error_answer)
            await response(scope, receive, send)
            return
        request.state.caller_token = token
        await self._router(scope, receive, send)


def _routes(store: Store, endpoints: Iterable[Endpoint]) -> list[Route]:
    """Return the routes of the endpoints. A collection such as `/agents` also has the route `/agents/`."""
    routes = []
    for endpoint in endpoints:
        is_collection = endpoint.path.count("/") == 1
        paths = [endpoint.path, f"{endpoint.path}/"] if is_collection else [endpoint.path]
        for path in paths:
            routes.append(Route(path, starlette_handler(store, endpoint), methods=[endpoint.method]))
    return routes


async def _answer_unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a call below /api/v1 whose path has no route."""
    response = plain_not_found()
    await response(scope, receive, send)


def plain_not_found() -> Response:
    """Return the 404 answer of Go's router, which is plain text instead of JSON."""
    return PlainTextResponse("404 page not found\n", 404)


async def answer_routing_error(request: Request, exc: Exception) -> Response:
    """Answer a call outside /api/v1 whose path has no route (404), or a call whose path has no such method (405).

    The 404 has a plain text body. The 405 has no body.
    """
    status = exc.status_code if isinstance(exc, HTTPException) else 500
    return plain_not_found() if status == 404 else Response(status_code=status)
