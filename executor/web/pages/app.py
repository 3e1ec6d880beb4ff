"""Builds the ASGI application with the HTML pages for operators."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from executor.errors import DatabaseError
from executor.web.pages import actions, doctor, job, jobs, lists, live, login, overview, vms
from executor.web.pages.forms import FormTooLarge
from executor.web.pages.parts import AgentStarting, PageContext, PageFunction
from executor.web.pages.rendering import Renderer
from executor.web.server_parts import ServerParts

STATIC_FOLDER = Path(__file__).parents[1] / "static"
#: How long a browser may keep scripts and styles without asking again. The URLs of these files contain our version, so
#: a browser loads the files of a new version at once.
STATIC_MAX_AGE_S = 3600
#: The function of each page, keyed by the path. The function returns the page and changes nothing.
PAGES: dict[str, PageFunction] = {
    "/": overview.show,
    "/jobs": jobs.show,
    "/jobs/{job_id:int}": job.show,
    "/vms": vms.show,
    "/executors": lists.show_agent_processes,
    "/settings": lists.show_settings,
    "/audit": lists.show_audit,
    "/doctor": doctor.show,
    "/login": login.show_login,
}
FormHandler = Callable[[PageContext, Request], Awaitable[Response]]
#: The function that handles each form, keyed by the path to which the form is sent.
FORMS: dict[str, FormHandler] = {
    "/login": login.log_in,
    "/logout": login.log_out,
    "/actions/{name}": actions.execute_operator_action,  # such as "retry" (a job) or "pause" (the agents)
}


def make_operator_pages(parts: ServerParts) -> Router:
    """Return the ASGI application with all pages for operators.

    `parts` contains the objects that the pages share with the middleware `Guard`, which refuses callers without access.
    """
    context = PageContext(server=parts, renderer=Renderer())
    routes: list[BaseRoute] = [Route(path, _page_endpoint(context, make_page)) for path, make_page in PAGES.items()]
    routes += [
        Route(path, _form_endpoint(context, handle_form), methods=["POST"]) for path, handle_form in FORMS.items()
    ]
    routes.append(Route("/jobs/{job_id:int}/events", _stream_endpoint(context)))
    routes += [
        Mount("/static", _StaticFiles(directory=STATIC_FOLDER)),
        Route("/{path:path}", _not_found_endpoint(context)),
    ]
    return Router(routes, redirect_slashes=False)


class _StaticFiles(StaticFiles):
    """Serves scripts and styles. Browsers may keep these files in their cache."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        """Return the file, or a response without content if the file has not changed since the browser loaded it."""
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]  # the arguments are passed on
        response.headers["Cache-Control"] = f"private, max-age={STATIC_MAX_AGE_S}"
        return response


def _page_endpoint(context: PageContext, make_page: PageFunction) -> Callable[[Request], Response]:
    """Return the endpoint of a page. The endpoint is not async, so Starlette runs it in a thread."""

    def endpoint(request: Request) -> Response:
        try:
            return make_page(context, request)
        except (AgentStarting, DatabaseError) as error:
            return _unavailable_response(context, request, error)

    return endpoint


def _form_endpoint(context: PageContext, handle_form: FormHandler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return await handle_form(context, request)
        except FormTooLarge:
            return context.message_page(request, 413, "Not accepted", "The form is too large.")
        except (AgentStarting, DatabaseError) as error:
            return _unavailable_response(context, request, error)

    return endpoint


def _stream_endpoint(context: PageContext) -> Callable[[Request], Awaitable[ASGIApp]]:
    async def endpoint(request: Request) -> ASGIApp:
        try:
            return await live.stream_job_events(context, request)
        except AgentStarting as error:
            return _unavailable_response(context, request, error)

    return endpoint


def _unavailable_response(context: PageContext, request: Request, error: Exception) -> Response:
    title = "The agent is starting" if isinstance(error, AgentStarting) else "The database does not answer"
    # `Guard` has set `may_see_details`: True if the caller may read all pages.
    text = str(error) if request.state.may_see_details else ""
    response = context.message_page(request, 503, title, text)
    response.headers["Retry-After"] = "5"
    return response


def _not_found_endpoint(context: PageContext) -> Callable[[Request], Response]:
    return lambda request: context.message_page(request, 404, "Not found", "There is no such page.")
