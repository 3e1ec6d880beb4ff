"""In front of every page: only questions, only for those who may ask, and headers that keep browsers out of it."""

from __future__ import annotations

import hmac
import re
import time
from collections import OrderedDict, deque
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from executor.log import get_logger
from executor.setting_types import is_local

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


class Guard:
    """An ASGI layer. Puts `may_see_details` into the request's state."""

    def __init__(self, app: ASGIApp, *, token: str, is_local: bool) -> None:
        self._app = app
        self._token = token.encode()
        self._is_local = is_local
        self._failures = Failures()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            return

        has_begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            await (self._refusal(scope) or self._app)(scope, receive, send_guarded)
        except Exception:
            # A defect in a page: its traceback belongs into our log, and nowhere else.
            log.exception("page_broke", path=scope["path"])
            if not has_begun:
                await _answer(500, "this page is broken, see the log")(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        if scope["method"] not in METHODS:
            return _answer(405, "nothing can be changed here", Allow=", ".join(METHODS))
        if self._is_local and not self._token and not _is_for_us(Headers(scope=scope)):
            return _answer(421, "this is not the host that was asked for")
        client = scope.get("client")
        address = str(client[0]) if client else ""
        shown = _bearer(Headers(scope=scope))
        is_known = False
        if self._token and shown is not None:
            if (wait_s := self._failures.wait_s(address)) > 0:
                return _answer(429, "too many wrong tokens", **{"Retry-After": str(int(wait_s) + 1)})
            is_known = hmac.compare_digest(shown, self._token)
            if not is_known:
                self._failures.note(address)
        scope.setdefault("state", {})["may_see_details"] = is_known or (self._is_local and not self._token)
        if is_known or not self._token or scope["path"] in OPEN_PATHS:
            return None
        return _answer(401, "a token is needed", **{"WWW-Authenticate": 'Bearer realm="agent-smith"'})


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
