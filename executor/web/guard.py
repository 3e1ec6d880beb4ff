"""Refuses requests of callers who may not read the page, and adds security headers to every response.

The guard checks the method and the host name of each request. If a login is required, the request must contain the
token, or come from a trusted reverse proxy.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from executor.log import get_logger
from executor.settings.types import is_local_address

log = get_logger(__name__)

#: Matches the port at the end of a Host header, as in `localhost:9642`.
_PORT_AT_END = re.compile(r":[0-9]+\Z")

#: The pages for health probes. They need no login, but show details only to callers with access, see `Access`.
OPEN_PATHS = frozenset({"/livez", "/readyz"})
#: The HTTP methods that the pages answer.
ALLOWED_METHODS = ("GET", "HEAD")
#: The security headers of every response.
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
#: If an address sends this many wrong tokens within WRONG_TOKEN_WINDOW_S, its further wrong tokens are answered with
#: 429 until the first of these tokens is older than WRONG_TOKEN_WINDOW_S. This makes a program with an old token wait.
#: Guessing needs no further limit, because a token has at least 16 characters.
MAX_WRONG_TOKENS = 10
WRONG_TOKEN_WINDOW_S = 60.0
#: Maximum number of addresses whose wrong tokens are counted.
MAX_COUNTED_ADDRESSES = 1024


@dataclass(frozen=True, kw_only=True)
class Access:
    """Defines who may read all pages: callers with the token, and users that a trusted reverse proxy has authenticated.

    If neither a token nor a proxy is configured, every caller may read all pages. In this case, the settings allow only
    an address that other machines cannot reach.
    """

    token: str = field(default="", repr=False)
    proxies: tuple[str, ...] = ()  #: addresses and networks of trusted reverse proxies
    user_header: str = ""  #: name of the header in which the proxies send the name of the user
    is_server_local: bool = True  #: whether only this machine can reach the server

    @property
    def needs_login(self) -> bool:
        """Whether a caller must log in: True if a token or a proxy is configured."""
        return bool(self.token or self.proxies)


class Guard:
    """ASGI middleware that refuses requests of callers who may not read the page.

    In the state of each request, it sets `may_see_details`: whether the page may show details to the caller.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._token = access.token.encode()
        self._proxies = [ipaddress.ip_network(proxy) for proxy in access.proxies]
        self._wrong_tokens = WrongTokenCounter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the pages, or answer it with a refusal."""
        if scope["type"] != "http":
            return  # there are no pages for WebSockets

        is_response_started = False

        async def send_with_security_headers(message: Message) -> None:
            nonlocal is_response_started
            if message["type"] == "http.response.start":
                is_response_started = True
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        try:
            respond: ASGIApp = self._refusal(scope) or self._app
            await respond(scope, receive, send_with_security_headers)
        except Exception:
            # The traceback is logged. The response does not contain it.
            log.exception("page_crashed", path=scope["path"])
            if not is_response_started:
                respond = _error_response(500, "internal error, see the log")
                await respond(scope, receive, send_with_security_headers)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """Return the response that refuses the request; None if the request is allowed."""
        headers = Headers(scope=scope)
        if scope["method"] not in ALLOWED_METHODS:
            return _error_response(405, "only GET and HEAD are allowed", {"Allow": ", ".join(ALLOWED_METHODS)})
        # Without a login, a foreign web page could read the pages by DNS rebinding, see `_is_local_host_header`.
        if not self._access.needs_login and self._access.is_server_local and not _is_local_host_header(headers):
            return _error_response(421, "unknown host name")
        address = _address_of(scope)
        has_access = not self._access.needs_login or self._is_from_trusted_proxy(address, headers)
        token = _bearer_token(headers)
        if not has_access and self._token and token is not None:
            # The right token is accepted also from an address that has sent wrong ones: several callers may share the
            # address, and one of them must not shut out the others.
            has_access = hmac.compare_digest(token, self._token)
            if not has_access:
                wait_s = self._wrong_tokens.remaining_wait_s(address)
                if wait_s > 0:
                    return _error_response(429, "too many wrong tokens", {"Retry-After": str(int(wait_s) + 1)})
                self._wrong_tokens.record(address)
        scope.setdefault("state", {})["may_see_details"] = has_access
        if has_access or scope["path"] in OPEN_PATHS:
            return None
        if not self._token:
            return _error_response(403, "a trusted reverse proxy that names the user is required")
        return _error_response(401, "a token is required", {"WWW-Authenticate": 'Bearer realm="agent-smith"'})

    def _is_from_trusted_proxy(self, address: str, headers: Headers) -> bool:
        """Return whether a trusted reverse proxy has sent the request, with the name of a user in the header."""
        if not self._proxies or not headers.get(self._access.user_header, "").strip():
            return False
        sender = parse_ip(address)
        return sender is not None and any(sender in network for network in self._proxies)


class WrongTokenCounter:
    """Counts the wrong tokens from each address. Not thread-safe: only the thread of the event loop may use it."""

    def __init__(self) -> None:
        # The times of the last wrong tokens from each address. The address that sent the newest wrong token is last.
        self._times_by_address: OrderedDict[str, deque[float]] = OrderedDict()

    def record(self, address: str) -> None:
        """Count a wrong token from this address."""
        times = self._times_by_address.pop(address, None) or deque(maxlen=MAX_WRONG_TOKENS)
        times.append(time.monotonic())
        self._times_by_address[address] = times
        if len(self._times_by_address) > MAX_COUNTED_ADDRESSES:
            self._times_by_address.popitem(last=False)  # the address whose last wrong token is the oldest

    def remaining_wait_s(self, address: str) -> float:
        """Return for how many seconds this address gets 429 for a wrong token; 0 if it gets 401."""
        times = self._times_by_address.get(address)
        if times is None or len(times) < MAX_WRONG_TOKENS:
            return 0.0
        return max(times[0] + WRONG_TOKEN_WINDOW_S - time.monotonic(), 0.0)


def _address_of(scope: Scope) -> str:
    """Return the IP address that has sent the request; '' if the server does not know it."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def parse_ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an IP address; return None if the text is not an IP address.

    A socket for both IPv6 and IPv4 shows the address 192.0.2.1 as ::ffff:192.0.2.1. It is returned as 192.0.2.1.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed


def _is_local_host_header(headers: Headers) -> bool:
    """Return whether the Host header names this machine, or is missing.

    This prevents DNS rebinding, in which an attacker's web page makes a browser send requests to this machine. The
    browser puts the attacker's host name into the Host header. The check is not needed if the pages need a login,
    because the attacker's page does not have the token.
    """
    host = headers.get("host", "")
    if not host:
        return True
    # `is_local_address` needs a port and ignores its number.
    host_and_port = host if _PORT_AT_END.search(host) else f"{host}:0"
    return is_local_address(host_and_port)


def _bearer_token(headers: Headers) -> bytes | None:
    """Return the token in the Authorization header; None if the header has no bearer token."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    return token.strip().encode("latin-1", "replace")


def _error_response(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status, headers=headers)
