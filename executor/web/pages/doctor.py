"""The page with the results of the last run of the preflight checks."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from executor.web.pages.parts import PageContext


def show(context: PageContext, request: Request) -> Response:
    """Return the page with the results of the last run of the preflight checks."""
    return context.renderer.render_page(request, "doctor.html", check_run=context.preflight_checks.last_check_run)
