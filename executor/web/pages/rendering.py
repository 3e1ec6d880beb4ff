"""Renders the pages for operators with Jinja2.

Every text is escaped for HTML, because names, messages and playbook output come from customers and guests. In each
text, secrets are masked, and control characters and invisible characters are shown as escapes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse

from executor.database.times import utc_now
from executor.version import VERSION
from executor.views.text import elapsed_text, iso_utc, sanitized
from executor.web.paths import first_part, relative_root_url

TEMPLATE_FOLDER = Path(__file__).parents[1] / "templates"
#: The links in the menu of each page: the shown name for each path.
MENU = {
    "": "Overview",
    "jobs": "Jobs",
    "vms": "VMs",
    "executors": "Executors",
    "settings": "Settings",
    "audit": "Audit",
    "doctor": "Doctor",
}


class Renderer:
    """Renders the HTML templates of the pages."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(TEMPLATE_FOLDER),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_text_for_page,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        # The keys are the names of the filters in the templates.
        self._environment.filters |= {"moment": time_html, "ago": elapsed_html, "lines": multiline_html}
        self._environment.globals |= {"menu": MENU, "version": VERSION}

    def render_page(self, request: Request, template: str, *, status_code: int = 200, **values: Any) -> HTMLResponse:
        """Return a whole page."""
        path = request.url.path
        values = {
            "visitor": request.state.visitor,  # the name and the session of the operator who sent the request
            "base": relative_root_url(path),  # the beginning of each link
            "here": first_part(path),  # the page's path in MENU
        } | values
        return HTMLResponse(self._environment.get_template(template).render(values), status_code=status_code)

    def render_part(self, template: str, **values: Any) -> str:
        """Return a part of a page as HTML."""
        return self._environment.get_template(template).render(values)


def _text_for_page(value: Any) -> Any:
    """Return what a template shows for a value: '' for None, and the result of `sanitized` for a text.

    `sanitized` masks secrets, and shows control characters as escapes. Jinja2 then escapes the text for HTML.
    """
    if value is None:
        return ""
    return sanitized(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def time_html(value: datetime | None) -> Markup:
    """Return a time in UTC as HTML. The pages' script in the browser adds the operator's local time."""
    if value is None:
        return Markup("")
    shown_text = f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    return Markup('<time datetime="{}">{}</time>').format(iso_utc(value), shown_text)


def elapsed_html(value: datetime | None) -> Markup:
    """Return the time since `value` as HTML, such as `5m ago`. The tooltip (attribute `title`) shows `value`."""
    if value is None:
        return Markup("never")
    shown_text = f"{elapsed_text(value, utc_now())} ago"
    return Markup('<time datetime="{}" class="ago" title="{}">{}</time>').format(
        iso_utc(value), iso_utc(value), shown_text
    )


def multiline_html(value: str) -> Markup:
    """Return a text of several lines as HTML, for an element such as `pre` that shows line breaks."""
    return escape(sanitized(value, keep_whitespace=True))
