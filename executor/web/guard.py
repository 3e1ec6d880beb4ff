"""In front of every page: only questions, only for those who may ask, and headers that keep browsers out of it."""

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

#: Pages for those who keep us running: they show no more than good or bad, in our own words.
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
#: Wrong tokens from one address within the window, after which it is not listened to until the window has passed.
MOST_FAILURES = 10
WINDOW_S = 60.0
#: Addresses that are remembered: whoever has more of them gains a guess each, of 16 characters or more.
MOST_ADDRESSES = 1024


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may read everything: who shows the token, or comes through a reverse proxy that knows who it is.

    With neither, everybody who can reach the port, which is then one that only this machine reaches.
    """

    token: str = field(default="", repr=False)
    proxies: tuple[str, ...] = ()  #: addresses and networks of reverse proxies
    user_header: str = ""  #: in which they name whom they have recognised
    is_local: bool = True

    @property
    def needs_login(self) -> bool:
        """True unless reaching the port is enough."""
        return bool(self.token or self.proxies)


class Guard:
    """An ASGI layer. Puts `may_see_details` into the request's state."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._token = access.token.encode()
        self._proxies = [ipaddress.ip_network(proxy) for proxy in access.proxies]
        self._failures = Failures()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
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
            # A defect in a page: its traceback belongs into our log, and nowhere else.
            log.exception("page_crashed", path=scope["path"])
            if not has_started:
                await _answer(500, "this page is broken, see the log")(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if scope["method"] not in METHODS:
            return _answer(405, "nothing can be changed here", Allow=", ".join(METHODS))
        if not self._access.needs_login and self._access.is_local and not _is_for_us(headers):
            return _answer(421, "this is not the host that was asked for")
        address = _address_of(scope)
        is_known = not self._access.needs_login or self._is_vouched_for(address, headers)
        shown = _bearer(headers)
        if not is_known and self._token and shown is not None:
            if (wait_s := self._failures.wait_s(address)) > 0:
                return _answer(429, "too many wrong tokens", **{"Retry-After": str(int(wait_s) + 1)})
            is_known = hmac.compare_digest(shown, self._token)
            if not is_known:
                self._failures.note(address)
        scope.setdefault("state", {})["may_see_details"] = is_known
        if is_known or scope["path"] in OPEN_PATHS:
            return None
        if not self._token:
            return _answer(403, "only through a reverse proxy that says who asks")
        return _answer(401, "a token is needed", **{"WWW-Authenticate": 'Bearer realm="agent-smith"'})

    def _is_vouched_for(self, address: str, headers: Headers) -> bool:
        """True when one of the reverse proxies names a user. From anywhere else the header is just text."""
        if not self._proxies or not headers.get(self._access.user_header, "").strip():
            return False
        peer = _ip_of(address)
        return peer is not None and any(peer in network for network in self._proxies)


class Failures:
    """Wrong tokens by address. Only the event loop's thread comes here."""

    def __init__(self) -> None:
        self._by_address: OrderedDict[str, deque[float]] = OrderedDict()

    def note(self, address: str) -> None:
        """Remember a wrong token."""
        times = self._by_address.pop(address, None) or deque(maxlen=MOST_FAILURES)
        times.append(time.monotonic())
        self._by_address[address] = times
        if len(self._by_address) > MOST_ADDRESSES:
            self._by_address.popitem(last=False)

    def wait_s(self, address: str) -> float:
        """Return how long the address has to wait; 0 when it may try."""
        times = self._by_address.get(address)
        if times is None or len(times) < MOST_FAILURES:
            return 0.0
        return max(times[0] + WINDOW_S - time.monotonic(), 0.0)


def _address_of(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _ip_of(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address as it is configured: a socket for IPv6 and IPv4 shows the latter as ::ffff:192.0.2.1."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    return (found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None) or found


def _is_for_us(headers: Headers) -> bool:
    """True unless a browser was told that some other name is this machine (DNS rebinding).

    Asked only where being on this machine is all that it takes to read: such a page cannot know a token.
    """
    host = headers.get("host", "")
    return not host or is_local(host if _PORT.search(host) else f"{host}:0")


def _bearer(headers: Headers) -> bytes | None:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else None


def _answer(status: int, text: str, **headers: Any) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status, headers=headers)
