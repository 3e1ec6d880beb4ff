"""The pages: /livez, /readyz, /metrics, what they answer at /openapi.json, and a list of them at /."""

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
from executor.web.health import Verdict, liveness, readiness
from executor.web.openapi import document

PAGES = ("/livez", "/readyz", "/metrics", "/openapi.json")


def make_app(stage: AgentHandle, access: Access) -> Starlette:
    """Return everything that the socket serves."""
    pages = _Pages(stage, access)
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
    """Plain functions: starlette runs them in threads, so a slow database delays no other page."""

    def __init__(self, stage: AgentHandle, access: Access) -> None:
        self._stage = stage
        self._description = document(access)

    def index(self, _request: Request) -> Response:
        return JSONResponse({"pages": PAGES})

    def livez(self, request: Request) -> Response:
        return _page(request, liveness(self._stage))

    def readyz(self, request: Request) -> Response:
        return _page(request, readiness(self._stage))

    def metrics(self, request: Request) -> Response:
        """Write what Prometheus reads, in the form that it asks for."""
        if self._stage.watched is None:
            return JSONResponse({"error": "the agent is starting"}, status_code=503)
        watched, prober = self._stage.watched
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        everything = CollectorRegistry()
        everything.register(Gauges(watched, prober))
        everything.register(watched.meters.registry)
        return Response(encode(everything), media_type=content_type)

    def openapi(self, _request: Request) -> Response:
        return JSONResponse(self._description)


def _page(request: Request, verdict: Verdict) -> Response:
    content = verdict.shown(with_details=request.state.may_see_details)
    return JSONResponse(content, status_code=200 if verdict.ok else 503)


def _not_found(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "there is no such page"}, status_code=404)
