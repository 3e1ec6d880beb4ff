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
from smith_lab.simulator.problems import Problem
from smith_lab.simulator.store import Store
from smith_lab.simulator.web import Endpoint, asgi_endpoint, authenticate, problem_response

API_PREFIX = "/api/v1"

_MODULES = (
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
ENDPOINTS: list[Endpoint] = [endpoint for module in _MODULES for endpoint in module.ENDPOINTS]


class Api:
    """Authenticates each call, then routes it. So without a valid token an unknown path is answered 401 or 403, too."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._router: ASGIApp = Router(_routes(store, ENDPOINTS), redirect_slashes=False, default=_unknown_path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            with self._store.lock:
                token = authenticate(self._store, request.headers.get("authorization"))
        except Problem as problem:
            await problem_response(problem)(scope, receive, send)
            return
        request.state.identity = token
        await self._router(scope, receive, send)


def _routes(store: Store, endpoints: Iterable[Endpoint]) -> list[Route]:
    """Return the routes of the endpoints. A collection (path with one segment) also has a route with a final slash."""
    routes = []
    for endpoint in endpoints:
        paths = [endpoint.path, f"{endpoint.path}/"] if endpoint.path.count("/") == 1 else [endpoint.path]
        for path in paths:
            routes.append(Route(path, asgi_endpoint(store, endpoint), methods=[endpoint.method]))
    return routes


async def _unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
    await not_found_text()(scope, receive, send)


def not_found_text() -> Response:
    """Return the 404 answer of Go's router, which is plain text instead of JSON."""
    return PlainTextResponse("404 page not found\n", 404)


async def answer_routing_error(request: Request, exc: Exception) -> Response:
    """Answer a routing error. The body of a 404 is plain text; 405 and other answers have no body."""
    status = exc.status_code if isinstance(exc, HTTPException) else 500
    return not_found_text() if status == 404 else Response(status_code=status)
