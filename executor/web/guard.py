"""Contains the guard, which refuses requests that are not allowed.

The guard checks the method and the host name of each request. If a login is required, the request must contain the
token or a session cookie, or come from a trusted reverse proxy. The health pages and the public paths (login, logout,
scripts and styles) need no login. A form must come from one of our own pages. The guard also adds security headers to
every response.
"""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from executor.database.web_sessions import truncated_name
from executor.errors import DatabaseError
from executor.log import get_logger
from executor.web.access import (
    accepts_html,
    bearer_token,
    is_cross_site_navigation,
    is_local_host_header,
    is_same_origin,
    sender_address,
)
from executor.web.paths import (
    ALLOWED_METHODS,
    HEALTH_PATHS,
    accepts_forms,
    is_operator_page_or_public,
    is_public_path,
    relative_root_url,
)
from executor.web.server_parts import ServerParts
from executor.web.sessions import Visitor, session_key_in

log = get_logger(__name__)

#: The security headers of every response that is not HTML. Responses in HTML have PAGE_HEADERS instead.
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
#: The security headers of HTML pages (the pages for operators). These pages use only scripts, styles and images of this
#: server. The referrer policy is not `no-referrer`: with `no-referrer`, browsers send the origin `null` with each form,
#: and the guard would refuse the form.
PAGE_HEADERS = SECURITY_HEADERS | {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "same-origin",
}
#: Error text for a page for operators if neither a login nor SMITH_HTTP_LOCAL_PAGES is configured.
NO_LOGIN_CONFIGURED = (
    "the pages need a login: set SMITH_HTTP_TOKEN; or set SMITH_HTTP_LOCAL_PAGES, which lets users of this machine "
    "read the pages without a login"
)
#: Error text if a caller is not logged in, and only a trusted reverse proxy can log in users.
PROXY_REQUIRED = "a trusted reverse proxy that names the user is required"
#: The answer to a user who has followed a link on another site. The browser sends no session cookie with this first
#: request (SameSite=Strict). This page makes the browser load the same address again. The second request comes from
#: our server's page, so the browser sends the cookie.
_RELOAD_PAGE = '<!doctype html><meta http-equiv="refresh" content="0"><title>Agent Smith</title>'


class Guard:
    """ASGI middleware that refuses requests that are not allowed.

    The guard sets two attributes of `request.state`. `visitor` has the caller's name and session. If `may_see_details`
    is False, the pages do not show the details of health checks and of errors, because these may name hosts and
    folders.
    """

    def __init__(self, app: ASGIApp, parts: ServerParts) -> None:
        self._app = app
        self._access = parts.access
        self._sessions = parts.sessions
        self._wrong_tokens = parts.wrong_tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the pages, or answer it with a refusal."""
        if scope["type"] != "http":
            return  # there are no pages for WebSockets

        is_response_started = False

        async def send_with_security_headers(message: Message) -> None:
            nonlocal is_response_started
            if message["type"] == "http.response.start":
                is_response_started = True
                _add_security_headers(MutableHeaders(scope=message))
            await send(message)

        try:
            respond: ASGIApp = await self._find_refusal(scope) or self._app
            await respond(scope, receive, send_with_security_headers)
        except Exception:
            # The traceback is logged. The response does not contain it.
            log.exception("page_crashed", path=scope["path"])
            if not is_response_started:
                respond = _error_response(500, "internal error, see the log")
                await respond(scope, receive, send_with_security_headers)

    async def _find_refusal(self, scope: Scope) -> Response | None:
        """Return the response that refuses the request; None if the request is allowed."""
        headers = Headers(scope=scope)
        if (refusal := self._find_method_refusal(scope, headers)) is not None:
            return refusal
        # If no login is required and only local callers can connect, an attacker's web page in a local browser could
        # read the pages by DNS rebinding, see `is_local_host_header`.
        if (
            not self._access.needs_login
            and self._access.can_only_local_callers_connect
            and not is_local_host_header(headers)
        ):
            return _error_response(421, "the Host header does not name this machine")
        proxy_user = self._access.proxy_user(scope)
        # True if no login is required, or if a trusted proxy or the right token authorizes the request. A session is
        # checked separately (`visitor`).
        is_authorized = not self._access.needs_login or bool(proxy_user)
        token = bearer_token(headers)
        if not is_authorized and self._access.token and token is not None:
            # The right token is accepted also from an address that has sent too many wrong tokens, because several
            # callers may share this address. `register_wrong_token` returns how many seconds the address must wait; 0
            # if it need not wait.
            is_authorized = self._access.is_correct_token(token)
            if not is_authorized and (wait_s := self._wrong_tokens.register_wrong_token(sender_address(scope))):
                return _error_response(429, "too many wrong tokens", {"Retry-After": str(wait_s)})
        visitor = await self._find_visitor(scope["path"], headers)
        # If two users share a browser, the proxy may name one user and the session may belong to the other. In this
        # case, the session is ignored. A session contains only the beginning of a long name.
        if visitor is not None and proxy_user and visitor.name != truncated_name(proxy_user):
            visitor = None
        request_state = scope.setdefault("state", {})
        request_state["may_see_details"] = is_authorized or visitor is not None
        request_state["visitor"] = visitor or Visitor(name=proxy_user)
        # `/` is a page for operators if the request accepts HTML, otherwise a list of the pages for programs,
        # such as /metrics.
        if is_operator_page_or_public(scope["path"]) and (scope["path"] != "/" or accepts_html(headers)):
            return self._find_page_refusal(scope, headers, is_authorized=is_authorized, has_session=visitor is not None)
        if is_authorized or visitor is not None or scope["path"] in HEALTH_PATHS:
            return None
        return self._unauthorized_response()

    def _find_method_refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """Return the response that refuses the request's method; None for GET, HEAD, and a form from our own pages."""
        if scope["method"] in ALLOWED_METHODS:
            return None
        if scope["method"] != "POST" or not accepts_forms(scope["path"]):
            return _error_response(405, "only GET and HEAD are allowed", {"Allow": ", ".join(ALLOWED_METHODS)})
        return None if is_same_origin(headers) else _error_response(403, "the form was sent by another site")

    async def _find_visitor(self, path: str, headers: Headers) -> Visitor | None:
        """Return the visitor to whom the session in the request's cookie belongs; None without a valid session.

        Also return None for the health pages, because they must never wait for the database.
        """
        session_key = session_key_in(headers)
        if not session_key or path in HEALTH_PATHS:
            return None
        try:
            visitor: Visitor | None = await run_in_threadpool(self._sessions.find, session_key)
        except DatabaseError:
            return None
        return visitor

    def _find_page_refusal(
        self, scope: Scope, headers: Headers, *, is_authorized: bool, has_session: bool
    ) -> Response | None:
        """Return the response that refuses to show a page for operators; None if the caller may read the page.

        An action (a form that changes something) needs a session.
        """
        access, path = self._access, scope["path"]
        may_read = has_session or (is_authorized and (access.needs_login or access.may_local_users_read_pages))
        is_action = scope["method"] == "POST" and not is_public_path(path)
        if is_public_path(path) or (may_read and (has_session or not is_action)):
            return None
        if not access.needs_login:
            return _text_or_json(headers, 403, NO_LOGIN_CONFIGURED)
        if is_cross_site_navigation(headers):
            return HTMLResponse(_RELOAD_PAGE)
        if accepts_html(headers) and (access.token or may_read):
            return RedirectResponse(f"{relative_root_url(path)}login?next={path[1:]}", status_code=303)
        return self._unauthorized_response()

    def _unauthorized_response(self) -> Response:
        if not self._access.token:
            return _error_response(403, PROXY_REQUIRED)
        return _error_response(401, "a token is required", {"WWW-Authenticate": 'Bearer realm="agent-smith"'})


def _add_security_headers(headers: MutableHeaders) -> None:
    is_html = headers.get("content-type", "").startswith("text/html")
    for name, value in (PAGE_HEADERS if is_html else SECURITY_HEADERS).items():
        # The responses with scripts and styles have a Cache-Control header already, which allows caching.
        if name != "Cache-Control" or name not in headers:
            headers[name] = value


def _text_or_json(headers: Headers, status: int, text: str) -> Response:
    return PlainTextResponse(text, status_code=status) if accepts_html(headers) else _error_response(status, text)


def _error_response(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status, headers=headers)
