"""Defines `PageContext`, the objects that all web pages for operators use, such as the renderer."""

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
    """The agent is starting, so the pages cannot show its state yet."""


@dataclass(frozen=True, kw_only=True)
class PageContext:
    """The objects that all web pages use."""

    server: ServerParts  #: the web server's objects; `agent_handle` gives access to the agent
    renderer: Renderer
    preflight_checks: PreflightChecks = field(default_factory=PreflightChecks)  #: runs the checks; keeps their results
    live_jobs: LiveJobs = field(default_factory=LiveJobs)  #: reads each job whose page is open, once per second

    def agent_view(self) -> AgentView:
        """Return the object that gives access to the agent. Raise AgentStarting while the agent is starting."""
        # `view_and_prober` is a pair of the AgentView and the Prober, which checks Proxmox, database and disk space.
        if self.server.agent_handle.view_and_prober is None:
            # `start_wait_reason` says why the agent waits at its start; '' if it does not wait.
            raise AgentStarting(self.server.agent_handle.start_wait_reason or "the agent is starting")
        return self.server.agent_handle.view_and_prober[0]

    def message_page(self, request: Request, status: int, title: str, text: str) -> Response:
        """Return a page with a title and a text."""
        return self.renderer.render_page(request, "message.html", status_code=status, title=title, text=text)


#: The type of the functions that return a page.
PageFunction = Callable[[PageContext, Request], Response]


def visitor_of(request: Request) -> Visitor:
    """Return the caller of the page: name and session. The middleware `Guard` has added this object to the request.

    `Guard` refuses callers without access.
    """
    visitor: Visitor = request.state.visitor
    return visitor
