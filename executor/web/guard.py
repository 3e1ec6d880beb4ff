"""Controls access to every page: methods, host name, token or reverse proxy. Adds security headers."""

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

_PORT = re.compile(r":[0-9]+\Z")

#: Pages that need no login, for health probes. Without a login they show no details.
OPEN_PATHS = frozenset({"/livez", "/readyz"})
METHODS = ("GET", "HEAD")
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
#: After this many wrong tokens from one address within WINDOW_S, tokens from it are refused until WINDOW_S has passed.
MAX_WRONG_TOKENS = 10
WINDOW_S = 60.0
#: Maximum number of addresses whose wrong tokens are counted. With more addresses an attacker gains some guesses, which
#: is harmless with a token of 16 characters or more.
MAX_ADDRESSES = 1024


@dataclass(frozen=True, kw_only=True)
class Access:
    """Defines who may read all pages: callers with the token, and users that a trusted reverse proxy has authenticated.

    Without a token and without proxies, every caller may. Then the settings allow only an address that other machines
    cannot reach.
    """

    token: str = field(default="", repr=False)
    proxies: tuple[str, ...] = ()  #: addresses and networks of trusted reverse proxies
    user_header: str = ""  #: the header in which the proxies send the user's name
    is_local: bool = True  #: whether only this machine can reach the server

    @property
    def needs_login(self) -> bool:
        """True when a token or a proxy is configured."""
        return bool(self.token or self.proxies)


class Guard:
    """ASGI middleware that refuses requests without access. It sets `may_see_details` in the state of a request."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._token = access.token.encode()
        self._proxies = [ipaddress.ip_network(proxy) for proxy in access.proxies]
        self._wrong_tokens = WrongTokens()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request to the pages, or refuse it."""
        if scope["type"] != "http":
            return

        has_started = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            await (self._refusal(scope) or self._app)(scope, receive, send_guarded)
        except Exception:
            # The traceback is logged, and not sent to the caller.
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
        """True when a trusted reverse proxy names a user. The header is ignored if another address sent it."""
        if not self._proxies or not headers.get(self._access.user_header, "").strip():
            return False
        peer = _ip_of(address)
        return peer is not None and any(peer in network for network in self._proxies)


class WrongTokens:
    """Counts wrong tokens by address. Not thread-safe: only the thread of the event loop uses it."""

    def __init__(self) -> None:
        self._by_address: OrderedDict[str, deque[float]] = OrderedDict()

    def note(self, address: str) -> None:
        """Count a wrong token."""
        times = self._by_address.pop(address, None) or deque(maxlen=MAX_WRONG_TOKENS)
        times.append(time.monotonic())
        self._by_address[address] = times
        if len(self._by_address) > MAX_ADDRESSES:
            self._by_address.popitem(last=False)

    def wait_s(self, address: str) -> float:
        """Return how long the address has to wait, 0 when it may try again."""
        times = self._by_address.get(address)
        if times is None or len(times) < MAX_WRONG_TOKENS:
            return 0.0
        return max(times[0] + WINDOW_S - time.monotonic(), 0.0)


def _address_of(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _ip_of(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the parsed address, None if it is not one. A dual-stack socket shows IPv4 as ::ffff:192.0.2.1."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    return (parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None) or parsed


def _is_local_host_header(headers: Headers) -> bool:
    """True when the Host header names this machine. In an attack by DNS rebinding, the browser sends another name.

    This is checked only when no login is needed: the attacker's page, which runs in the browser, has no token.
    """
    host = headers.get("host", "")
    return not host or is_local(host if _PORT.search(host) else f"{host}:0")


def _bearer(headers: Headers) -> bytes | None:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else None


def _error_response(status: int, text: str, **headers: Any) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status, headers=headers)
