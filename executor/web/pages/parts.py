"""Defines `PageContext`, through which each page for operators gets the parts of the server and the agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from executor.errors import SmithError
from executor.web.agent_view import AgentView
from executor.web.pages.live_jobs import LiveJobs
from executor.web.pages.preflight_checks import PreflightChecks
from executor.web.pages.rendering import Renderer
from executor.web.server_parts import ServerParts
from executor.web.sessions import Visitor


class AgentStarting(SmithError):
    """The agent is starting, so the pages cannot read it yet."""


@dataclass(frozen=True, kw_only=True)
class PageContext:
    """The parts of the server, the renderer of the pages, and the state that the pages share."""

    server: ServerParts
    renderer: Renderer
    preflight_checks: PreflightChecks = field(default_factory=PreflightChecks)
    live_jobs: LiveJobs = field(default_factory=LiveJobs)

    def agent_view(self) -> AgentView:
        """Return the parts of the agent that the pages read. Raises AgentStarting if there is no agent yet."""
        if self.server.handle.view_and_prober is None:
            raise AgentStarting(self.server.handle.wait_reason or "the agent is starting")
        return self.server.handle.view_and_prober[0]

    def message_page(self, request: Request, status: int, title: str, text: str) -> Response:
        """Return a page with a title and a text."""
        return self.renderer.render_page(request, "message.html", status_code=status, title=title, text=text)


#: The type of the functions that return a page.
PageFunction = Callable[[PageContext, Request], Response]


def visitor_of(request: Request) -> Visitor:
    """Return the visitor, which the middleware `Guard` has put into the state of the request."""
    visitor: Visitor = request.state.visitor
    return visitor
