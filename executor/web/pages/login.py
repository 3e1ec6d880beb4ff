"""Logs operators in and out at the web pages.

The login checks the token, or accepts the user whom a trusted reverse proxy names, and sets the cookie of a session.
The right token is accepted even from an address that has sent many wrong tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from executor.database.web_sessions import truncated_name
from executor.log import get_logger
from executor.web.access import sender_address
from executor.web.pages.forms import read_form
from executor.web.pages.parts import PageContext, visitor_of
from executor.web.sessions import COOKIE_NAME, LIFETIME

log = get_logger(__name__)

#: Matches a page to which the login may redirect the browser. It does not match a URL of another site.
_SAFE_NEXT_PAGE = re.compile(r"[a-z]+(/[0-9a-f-]+)?")


@dataclass(frozen=True, kw_only=True)
class _LoginForm:
    """The values that the login form shows."""

    name: str = ""
    next_page: str = ""
    error: str = ""


def show_login(context: PageContext, request: Request) -> Response:
    """Return the page with the login form."""
    return _login_page(context, request, _LoginForm(next_page=request.query_params.get("next", "")))


async def log_in(context: PageContext, request: Request) -> Response:
    """Check the token of the form, start a session, and redirect the browser to the requested page."""
    form = await read_form(request)
    access = context.server.access  # knows the configured token (SMITH_HTTP_TOKEN) and the trusted reverse proxies
    proxy_user = access.proxy_user(request.scope)
    name = proxy_user or "".join(char for char in form.get("name", "").strip() if char.isprintable())
    next_page = form.get("next", "")
    if not proxy_user:
        if not access.is_correct_token(form.get("token", "").strip().encode()):
            return _wrong_token_response(context, request, name=name, next_page=next_page)
        if not name:
            return _login_page(
                context, request, _LoginForm(next_page=next_page, error="Enter your name: the audit log shows it."), 400
            )
    context.agent_view()  # raises AgentStarting while the agent is starting and cannot store a session
    key = await run_in_threadpool(context.server.sessions.start, name)
    log.info("operator_logged_in", name=truncated_name(name), address=sender_address(request.scope))
    target = next_page if _SAFE_NEXT_PAGE.fullmatch(next_page) else "./"
    response = RedirectResponse(target, status_code=303)
    # If the cookie has no path, the browser sends it to all URLs in the folder of this page. All pages are in this
    # folder, even if a reverse proxy serves the pages under a prefix.
    response.set_cookie(
        COOKIE_NAME,
        key,
        max_age=int(LIFETIME.total_seconds()),
        path=None,
        httponly=True,
        samesite="strict",
        secure=request.headers.get("origin", "").startswith("https://"),
    )
    return response


async def log_out(context: PageContext, request: Request) -> Response:
    """End the session."""
    visitor = visitor_of(request)
    form = await read_form(request)
    # `form_token` protects against CSRF. Each form of the session contains it.
    if visitor.session_key and not visitor.is_form_token_of_session(form.get("form_token", "")):
        return context.message_page(
            request, 403, "Not logged out", "The form does not belong to your session: reload the page."
        )
    await run_in_threadpool(context.server.sessions.end, visitor.session_key)
    response = RedirectResponse("login", status_code=303)
    # Like `set_cookie`, `delete_cookie` accepts the path None, but its annotation does not allow it.
    response.delete_cookie(COOKIE_NAME, path=None, httponly=True, samesite="strict")  # type: ignore[arg-type]
    return response


def _wrong_token_response(context: PageContext, request: Request, *, name: str, next_page: str) -> Response:
    """Count a wrong token, and return the login form with an error.

    After too many wrong tokens, the error says how long to wait.
    """
    wait_s = context.server.wrong_tokens.register_wrong_token(sender_address(request.scope))
    if not wait_s:
        return _login_page(
            context, request, _LoginForm(name=name, next_page=next_page, error="The token is wrong."), 401
        )
    text = f"Too many wrong tokens from this address: try again in {wait_s} s."
    response = _login_page(context, request, _LoginForm(name=name, next_page=next_page, error=text), 429)
    response.headers["Retry-After"] = str(wait_s)
    return response


def _login_page(context: PageContext, request: Request, form: _LoginForm, status: int = 200) -> Response:
    """Return the page with the login form. The form asks for no token if a reverse proxy names the user."""
    access = context.server.access
    return context.renderer.render_page(
        request,
        "login.html",
        status_code=status,
        form=form,
        user=access.proxy_user(request.scope),
        is_token_configured=bool(access.token),
    )
