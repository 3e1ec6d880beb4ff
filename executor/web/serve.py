"""Configures the uvicorn server of the pages.

Only the server's thread imports this module, because the import of uvicorn takes a third of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from executor.settings.settings import Settings
from executor.settings.types import is_local_address
from executor.web.agent_view import AgentHandle
from executor.web.app import make_app
from executor.web.guard import Access

#: Maximum number of connections at once. The server answers 503 on every further connection.
MAX_CONNECTIONS = 64
#: The server closes a connection on which no complete request arrives within this time.
REQUEST_TIMEOUT_S = 10.0
#: After a response, the server closes the connection if no further request arrives within this time.
KEEP_ALIVE_S = 5
MAX_HEADER_BYTES = 16_384
#: When the server stops, requests in progress have this time to end.
SHUTDOWN_TIMEOUT_S = 1
#: Interval at which the server wakes up to update the Date header of its responses.
TICK_S = 1.0


class _ProtocolWithTimeout(H11Protocol):
    """Closes connections on which no request arrives. Without this class, uvicorn would keep them open for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn declares this type
        super().connection_made(transport)
        self.loop.call_later(REQUEST_TIMEOUT_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        cycle: Any = self.cycle  # uvicorn's object for the present request; None before the first request
        if cycle is None and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """A server that wakes up once a second, and stops at once when `request_stop` is called.

    Uvicorn's own server wakes up ten times a second to check whether it must stop.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stop_requested: asyncio.Event | None = None
        self._event_loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Serve until `request_stop` is called."""
        self._stop_requested, self._event_loop = asyncio.Event(), asyncio.get_running_loop()
        # `on_tick` returns whether the server must stop. With the counter 0, it also updates the Date header.
        while not await self.on_tick(counter=0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop_requested.wait(), TICK_S)

    def request_stop(self) -> None:
        """Make the server stop. A thread other than the server thread calls this method."""
        self.should_exit = True
        if self._stop_requested is not None and self._event_loop is not None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended already
                self._event_loop.call_soon_threadsafe(self._stop_requested.set)


def make_server(settings: Settings, handle: AgentHandle) -> Server:
    """Return a server for the pages. It does not listen yet."""
    access = Access(
        token=settings.smith_http_token.get_secret_value(),
        proxies=settings.smith_http_proxies,
        user_header=settings.smith_http_user_header,
        is_server_local=is_local_address(settings.smith_http_addr),
    )
    return Server(
        uvicorn.Config(
            make_app(handle, access),
            loop="asyncio",
            http=_ProtocolWithTimeout,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
    )
