"""Routes calls below /api/v1 to the endpoints, and refuses unknown paths and methods as FulcrumCore does."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote, unquote

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
    metric_reports,
    metrics,
    options,
    participants,
    pool_values,
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
#: The characters that Go does not escape in a path, besides letters and digits. FulcrumCore is a Go program.
UNESCAPED_CHARACTERS = "$&+,/:;=@-_.~"
#: The path parameters that may be empty in a call, each with the `/` after it.
_PARAMETERS_THAT_MAY_BE_EMPTY = ("{id}/", "{token}/")

#: Each module handles the calls for one kind of object of the API. For example, `install` handles the shell
#: commands that install an agent, and `options` handles the service options that providers offer. `metrics` handles
#: the values that agents measured, and `metric_reports` computes, for example, averages of these values. `pools` and
#: `pool_values` handle FulcrumCore's pools and the values in a pool. If a request does not set a property of a service,
#: FulcrumCore can take its value from a pool.
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
    metric_reports,
    options,
    vault,
    events,
    pools,
    pool_values,
)
ENDPOINTS: list[Endpoint] = [endpoint for module in _ENDPOINT_MODULES for endpoint in module.ENDPOINTS]


class Api:
    """Authenticates each call, then routes it.

    Because of this order, a call without a valid token is answered 401 or 403 even if its path is unknown.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._routes = _routes(store, ENDPOINTS)
        self._router: ASGIApp = Router(self._routes, redirect_slashes=False, default=_answer_unknown_path)

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
        path = _routed_path(scope["raw_path"])
        methods = self._methods_of(path.removeprefix(API_PREFIX))
        if methods and scope["method"] not in methods:
            response = Response(status_code=405, headers={"Allow": ", ".join(methods)})
            await response(scope, receive, send)
            return
        await self._router({**scope, "path": path}, receive, send)

    def _methods_of(self, path: str) -> list[str]:
        """Return the methods of all routes that match the path. A method occurs twice if two of the routes have it."""
        routes = [route for route in self._routes if route.path_regex.match(path)]
        return [method for route in routes for method in sorted(route.methods or ())]


def _routed_path(raw_path: bytes) -> str:
    """Return the path that FulcrumCore's router compares with its routes.

    The router decodes a path only if each escape in it is necessary: it decodes `two%20words`, but not `%70ending`,
    because `p` needs no escape.
    """
    path = raw_path.decode("latin-1").partition("?")[0]
    decoded_path = unquote(path)
    return decoded_path if quote(decoded_path, safe=UNESCAPED_CHARACTERS) == path else path


def _routes(store: Store, endpoints: Iterable[Endpoint]) -> list[Route]:
    """Return the routes of the endpoints. A collection such as `/agents` also has the route `/agents/`.

    If an id is not the last part of a path, FulcrumCore's router also accepts an empty id, such as in `/jobs//claim`.
    FulcrumCore's code panics in most calls without an id, so the answer is 500.
    """
    routes = []
    for endpoint in endpoints:
        is_collection = endpoint.path.count("/") == 1
        paths = [endpoint.path, f"{endpoint.path}/"] if is_collection else [endpoint.path]
        paths += [
            endpoint.path.replace(parameter, "/")
            for parameter in _PARAMETERS_THAT_MAY_BE_EMPTY
            if parameter in endpoint.path
        ]
        for path in paths:
            route = Route(path, starlette_handler(store, endpoint), methods=[endpoint.method])
            route.methods = {endpoint.method}  # Starlette adds HEAD to GET, but FulcrumCore does not answer HEAD
            routes.append(route)
    return routes


async def _answer_unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a call below /api/v1 whose path has no route."""
    response = plain_text_not_found()
    await response(scope, receive, send)


def plain_text_not_found() -> Response:
    """Return the 404 answer of Go's router, which is plain text instead of JSON."""
    return PlainTextResponse("404 page not found\n", 404, {"X-Content-Type-Options": "nosniff"})


async def answer_routing_error(request: Request, exc: Exception) -> Response:
    """Answer a call outside /api/v1: 404 if its path has no route, 405 if its path has routes only for other methods.

    The answer 404 has a plain text body. The answer 405 has no body.
    """
    status = exc.status_code if isinstance(exc, HTTPException) else 500
    return plain_text_not_found() if status == 404 else Response(status_code=status)
