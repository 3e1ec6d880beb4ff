"""The page with the last results of the preflight checks."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from executor.web.pages.parts import PageParts


def show(parts: PageParts, request: Request) -> Response:
    """Return the results of the last checks."""
    return parts.renderer.page(request, "doctor.html", check_run=parts.doctor.last)
