"""Adds FulcrumCore's CORS headers to answers, and answers CORS preflight requests, which need no token."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ALLOWED_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
ALLOWED_HEADERS = frozenset({"accept", "authorization", "content-type", "x-csrf-token", "origin"})
ALLOWED_ORIGIN_STARTS = ("http://", "https://")
#: How long a browser may cache the answer to a preflight request.
MAX_AGE_S = 300


class Cors:
    """ASGI middleware that handles CORS for every call, except calls below /lab, which control the simulator."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/lab"):
            await self._app(scope, receive, send)
            return
        request_headers = Headers(scope=scope)
        is_preflight = (
            scope["method"] == "OPTIONS"
            and "origin" in request_headers
            and bool(request_headers.get("access-control-request-method"))
        )
        if is_preflight:
            response = Response(headers=_preflight_headers(request_headers))
            await response(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_answer_headers(scope["method"], request_headers))
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _preflight_headers(request_headers: Headers) -> dict[str, str]:
    headers = {"Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"}
    method = request_headers["access-control-request-method"].upper()
    header_names = [name.strip() for name in request_headers.get("access-control-request-headers", "").split(",")]
    header_names = [name.title() for name in header_names if name]
    is_allowed = _is_origin_allowed(request_headers) and method in ALLOWED_METHODS
    if not is_allowed or not {name.lower() for name in header_names} <= ALLOWED_HEADERS:
        return headers
    headers |= {
        "Access-Control-Allow-Origin": request_headers["origin"],
        "Access-Control-Allow-Methods": method,
        "Access-Control-Max-Age": str(MAX_AGE_S),
    }
    return headers | ({"Access-Control-Allow-Headers": ", ".join(header_names)} if header_names else {})


def _answer_headers(method: str, request_headers: Headers) -> dict[str, str]:
    headers = {"Vary": "Origin"}
    if _is_origin_allowed(request_headers) and method in ALLOWED_METHODS:
        headers |= {
            "Access-Control-Allow-Origin": request_headers["origin"],
            "Access-Control-Expose-Headers": "Link",
        }
    return headers


def _is_origin_allowed(request_headers: Headers) -> bool:
    return request_headers.get("origin", "").lower().startswith(ALLOWED_ORIGIN_STARTS)
