"""Builds the HTTP pages for programs (/livez, /readyz, /metrics, /openapi.json) and the pages for operators."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from executor.web.access import Access, accepts_html
from executor.web.agent_view import AgentHandle
from executor.web.gauges import Gauges
from executor.web.guard import Guard
from executor.web.health import HealthReport, liveness_report, readiness_report
from executor.web.openapi import openapi_document
from executor.web.paths import PROGRAM_PAGE_PATHS, is_operator_page_or_public
from executor.web.server_parts import ServerParts
from executor.web.sessions import Sessions
from executor.web.wrong_tokens import WrongTokenCounter


def make_app(handle: AgentHandle, access: Access) -> Starlette:
    """Return the ASGI application with all pages. `access` defines who may read the pages.

    The pages read the agent's data through `handle`. It is empty at first, because the server starts before the
    agent.

    The middleware `Guard` refuses callers who may not read a page. `ServerParts` contains the objects that the guard
    and the pages share, for example the sessions of operators.
    """
    program_pages = _ProgramPages(handle, access)
    parts = ServerParts(
        agent_handle=handle, access=access, sessions=Sessions(handle, access), wrong_tokens=WrongTokenCounter()
    )
    app = Starlette(
        routes=[
            Route("/livez", program_pages.livez),
            Route("/readyz", program_pages.readyz),
            Route("/metrics", program_pages.metrics),
            Route("/openapi.json", program_pages.openapi),
            Route("/{path:path}", _OperatorPages(parts)),
        ],
        middleware=[Middleware(Guard, parts)],
        exception_handlers={404: _not_found},
    )
    app.router.redirect_slashes = False
    app.state.event_streams = parts.streams  # so that the server can end the event streams of the pages when it stops
    return app


class _ProgramPages:
    """The pages that programs read. Each method returns one page.

    Starlette runs a method that is not async in a thread, so a slow page does not delay other pages. The methods of the
    health pages are async, because they only read memory. If they needed threads, callers without a login could occupy
    all threads.
    """

    def __init__(self, handle: AgentHandle, access: Access) -> None:
        self._handle = handle
        self._openapi_document = openapi_document(access)

    async def livez(self, request: Request) -> Response:
        return _health_page(request, liveness_report(self._handle))

    async def readyz(self, request: Request) -> Response:
        return _health_page(request, readiness_report(self._handle))

    def metrics(self, request: Request) -> Response:
        """Return the metrics, in the format that the Accept header of the request names."""
        if self._handle.view_and_prober is None:
            return JSONResponse({"error": "the agent is starting"}, status_code=503)
        # The view gives access to the agent's data. The prober checks Proxmox, the database and the disk space.
        view, prober = self._handle.view_and_prober
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        registry = CollectorRegistry()
        registry.register(Gauges(view, prober))
        registry.register(view.meters.registry)  # the agent's counters and histograms
        return Response(encode(registry), media_type=content_type)

    def openapi(self, _request: Request) -> Response:
        return JSONResponse(self._openapi_document)


class _OperatorPages:
    """Forwards requests to the pages for operators, and to the public paths: login, logout, scripts and styles.

    These pages are imported, and their ASGI application is built, at the first request that is forwarded. They are not
    imported earlier, because their import takes as long as the import of the rest of the server, and the pages of most
    agents are never opened.
    """

    def __init__(self, parts: ServerParts) -> None:
        self._parts = parts
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. If a request for `/` does not accept HTML, return the list of the pages for programs."""
        path = scope["path"]
        if not is_operator_page_or_public(path):
            raise HTTPException(404)
        if path == "/" and not accepts_html(Headers(scope=scope)):
            await JSONResponse({"pages": PROGRAM_PAGE_PATHS})(scope, receive, send)
            return
        if self._app is None:
            self._app = await run_in_threadpool(self._build)
        await self._app(scope, receive, send)

    def _build(self) -> ASGIApp:
        from executor.web.pages.app import make_operator_pages  # noqa: PLC0415 (see the docstring of the class)

        return make_operator_pages(self._parts)


def _health_page(request: Request, report: HealthReport) -> Response:
    """Return the page of a health report, with details only if the middleware `Guard` allows the caller to see them."""
    content = report.as_json(with_details=request.state.may_see_details)
    return JSONResponse(content, status_code=200 if report.ok else 503)


def _not_found(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "page not found"}, status_code=404)
