"""Defines what each page for operators gets: the parts of the server, and the agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from executor.errors import SmithError
from executor.web.agent_view import AgentView
from executor.web.pages.examination import Doctor
from executor.web.pages.live_jobs import LiveJobs
from executor.web.pages.rendering import Renderer
from executor.web.server_parts import ServerParts
from executor.web.sessions import Visitor


class AgentStarting(SmithError):
    """There is no agent yet, so there is nothing to show."""


@dataclass(frozen=True, kw_only=True)
class PageParts:
    """The parts of the server, and what renders the pages."""

    server: ServerParts
    renderer: Renderer
    doctor: Doctor = field(default_factory=Doctor)
    live: LiveJobs = field(default_factory=LiveJobs)

    def agent(self) -> AgentView:
        """Return the agent. Raises AgentStarting."""
        if self.server.handle.view_and_prober is None:
            raise AgentStarting(self.server.handle.wait_reason or "the agent is starting")
        return self.server.handle.view_and_prober[0]

    def message(self, request: Request, status: int, title: str, text: str) -> Response:
        """Return a page with a title and a text."""
        return self.renderer.page(request, "message.html", status_code=status, title=title, text=text)


#: A page: it reads what it shows, and returns the response.
Page = Callable[[PageParts, Request], Response]


def visitor_of(request: Request) -> Visitor:
    """Return the visitor, whom the guard has set."""
    visitor: Visitor = request.state.visitor
    return visitor
