"""Builds the HTTP pages: /livez, /readyz, /metrics, their OpenAPI document at /openapi.json, and an index at /."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from executor.web.agent_view import AgentHandle
from executor.web.gauges import Gauges
from executor.web.guard import Access, Guard
from executor.web.health import HealthReport, liveness_report, readiness_report
from executor.web.openapi import openapi_document

PAGE_PATHS = ("/livez", "/readyz", "/metrics", "/openapi.json")


def make_app(handle: AgentHandle, access: Access) -> Starlette:
    """Return the ASGI application with all pages. `access` defines who may read the pages."""
    pages = _Pages(handle, access)
    app = Starlette(
        routes=[
            Route("/", pages.index),
            Route("/livez", pages.livez),
            Route("/readyz", pages.readyz),
            Route("/metrics", pages.metrics),
            Route("/openapi.json", pages.openapi),
        ],
        middleware=[Middleware(Guard, access)],
        exception_handlers={404: _not_found},
    )
    app.router.redirect_slashes = False
    return app


class _Pages:
    """The pages, with one method each.

    The methods are not async, so starlette runs each of them in a thread, and a slow page does not delay other pages.
    """

    def __init__(self, handle: AgentHandle, access: Access) -> None:
        self._handle = handle
        self._openapi_document = openapi_document(access)

    def index(self, _request: Request) -> Response:
        return JSONResponse({"pages": PAGE_PATHS})

    def livez(self, request: Request) -> Response:
        return _health_page(request, liveness_report(self._handle))

    def readyz(self, request: Request) -> Response:
        return _health_page(request, readiness_report(self._handle))

    def metrics(self, request: Request) -> Response:
        """Return the metrics, in the format that the Accept header of the request names."""
        if self._handle.view_and_prober is None:
            return JSONResponse({"error": "the agent is starting"}, status_code=503)
        view, prober = self._handle.view_and_prober
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        registry = CollectorRegistry()
        registry.register(Gauges(view, prober))
        registry.register(view.meters.registry)
        return Response(encode(registry), media_type=content_type)

    def openapi(self, _request: Request) -> Response:
        return JSONResponse(self._openapi_document)


def _health_page(request: Request, report: HealthReport) -> Response:
    """Return the page of a health report. The middleware `Guard` has set `may_see_details`."""
    content = report.as_json(with_details=request.state.may_see_details)
    return JSONResponse(content, status_code=200 if report.ok else 503)


def _not_found(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "page not found"}, status_code=404)
