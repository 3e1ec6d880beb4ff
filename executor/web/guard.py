"""Refuses requests that may not read a page, and adds security headers to every response.

It checks the method of a request, its host name, and its token or the reverse proxy that has sent it.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from executor.log import get_logger
from executor.settings.types import is_local

log = get_logger(__name__)

#: The port at the end of a Host header.
_PORT = re.compile(r":[0-9]+\Z")

#: The pages that health probes may read without a login. They show details only to a caller with a login.
OPEN_PATHS = frozenset({"/livez", "/readyz"})
#: The allowed methods.
METHODS = ("GET", "HEAD")
#: The security headers of every response.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
#: After this many wrong tokens from one address within WINDOW_S, every token from this address is refused until the
#: first of the wrong tokens is older than WINDOW_S.
MAX_WRONG_TOKENS = 10
WINDOW_S = 60.0
#: Maximum number of addresses whose wrong tokens are counted. An attacker with more addresses can try more tokens. This
#: is harmless, because a token has at least 16 characters.
MAX_ADDRESSES = 1024


@dataclass(frozen=True, kw_only=True)
class Access:
    """Defines who may read all pages: callers with the token, and users that a trusted reverse proxy has authenticated.

    If neither a token nor a proxy is configured, every caller may read all pages. Then the settings allow only an
    address that other machines cannot reach.
    """

    token: str = field(default="", repr=False)
    proxies: tuple[str, ...] = ()  #: addresses and networks of trusted reverse proxies
    user_header: str = ""  #: name of the header in which the proxies send the name of the user
    is_local: bool = True  #: whether only this machine can reach the server

    @property
    def needs_login(self) -> bool:
        """True if a token or a proxy is configured."""
        return bool(self.token or self.proxies)


class Guard:
    """ASGI middleware that refuses requests without access.

    It sets `may_see_details` in the state of each request: whether the page may show details to the caller.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._token = access.token.encode()
        self._proxies = [ipaddress.ip_network(proxy) for proxy in access.proxies]
        self._wrong_tokens = WrongTokens()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the pages, or answer it with a refusal."""
        if scope["type"] != "http":
            return

        has_started = False  # whether the start of the response was sent

        async def send_guarded(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            await (self._refusal(scope) or self._app)(scope, receive, send_guarded)
        except Exception:
            # The traceback is logged. The caller gets a response without it.
            log.exception("page_crashed", path=scope["path"])
            if not has_started:
                await _error_response(500, "internal error, see the log")(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """Return the response that refuses the request; None if the request is allowed."""
        headers = Headers(scope=scope)
        if scope["method"] not in METHODS:
            return _error_response(405, "only GET and HEAD are allowed", Allow=", ".join(METHODS))
        if not self._access.needs_login and self._access.is_local and not _is_local_host_header(headers):
            return _error_response(421, "unknown host name")
        address = _address_of(scope)
        is_authenticated = not self._access.needs_login or self._is_from_trusted_proxy(address, headers)
        token = _bearer(headers)
        if not is_authenticated and self._token and token is not None:
            if (wait_s := self._wrong_tokens.wait_s(address)) > 0:
                return _error_response(429, "too many wrong tokens", **{"Retry-After": str(int(wait_s) + 1)})
            is_authenticated = hmac.compare_digest(token, self._token)
            if not is_authenticated:
                self._wrong_tokens.note(address)
        scope.setdefault("state", {})["may_see_details"] = is_authenticated
        if is_authenticated or scope["path"] in OPEN_PATHS:
            return None
        if not self._token:
            return _error_response(403, "only through a trusted reverse proxy that names the user")
        return _error_response(401, "a token is required", **{"WWW-Authenticate": 'Bearer realm="agent-smith"'})

    def _is_from_trusted_proxy(self, address: str, headers: Headers) -> bool:
        """True if a trusted reverse proxy has sent the request and names a user in the header.

        The header of any other sender is ignored.
        """
        if not self._proxies or not headers.get(self._access.user_header, "").strip():
            return False
        peer = _ip_of(address)
        return peer is not None and any(peer in network for network in self._proxies)


class WrongTokens:
    """Counts wrong tokens by address. It is not thread-safe: only the thread of the event loop may use it."""

    def __init__(self) -> None:
        # The times of the last wrong tokens from each address. The address with the newest one is last.
        self._by_address: OrderedDict[str, deque[float]] = OrderedDict()

    def note(self, address: str) -> None:
        """Count a wrong token from this address."""
        times = self._by_address.pop(address, None) or deque(maxlen=MAX_WRONG_TOKENS)
        times.append(time.monotonic())
        self._by_address[address] = times
        if len(self._by_address) > MAX_ADDRESSES:
            self._by_address.popitem(last=False)

    def wait_s(self, address: str) -> float:
        """Return how many seconds this address must wait before it may send a token; 0 if it need not wait."""
        times = self._by_address.get(address)
        if times is None or len(times) < MAX_WRONG_TOKENS:
            return 0.0
        return max(times[0] + WINDOW_S - time.monotonic(), 0.0)


def _address_of(scope: Scope) -> str:
    """Return the IP address that has sent the request; '' if the server does not know it."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _ip_of(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the parsed IP address; None if the text is not one.

    A socket for IPv6 and IPv4 shows an IPv4 address as ::ffff:192.0.2.1. This is returned as 192.0.2.1.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    return (parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None) or parsed


def _is_local_host_header(headers: Headers) -> bool:
    """True if the Host header names this machine, or is missing.

    This prevents DNS rebinding: an attacker's web page makes the browser send requests to this machine, but the browser
    puts the attacker's host name into the Host header. The check is needed only if the pages need no login, because the
    attacker's page does not have the token.
    """
    host = headers.get("host", "")
    return not host or is_local(host if _PORT.search(host) else f"{host}:0")


def _bearer(headers: Headers) -> bytes | None:
    """Return the token in the Authorization header; None if it has no bearer token."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else None


def _error_response(status: int, text: str, **headers: Any) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status, headers=headers)
