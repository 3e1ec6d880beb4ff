"""Configures the uvicorn server of the pages. Only the server's thread imports this module, because this takes long."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from executor.settings.settings import Settings
from executor.settings.types import is_local
from executor.web.agent_view import AgentHandle
from executor.web.app import make_app
from executor.web.guard import Access

#: Maximum number of connections at once. The server answers 503 on every further connection.
MAX_CONNECTIONS = 64
#: The server closes a connection on which no complete request arrives within this time.
REQUEST_TIMEOUT_S = 10.0
#: The server closes a connection on which no further request arrives within this time after a response.
KEEP_ALIVE_S = 5
MAX_HEADER_BYTES = 16_384
#: The time that requests in progress have to end when the server stops.
SHUTDOWN_S = 1
#: Time after which the server updates its Date header.
TICK_S = 1.0


class _ProtocolWithTimeout(H11Protocol):
    """Closes connections on which no request arrives. Without this class, uvicorn would keep them open for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn declares it so
        super().connection_made(transport)
        self.loop.call_later(REQUEST_TIMEOUT_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        cycle: Any = self.cycle  # uvicorn's object for the present request; None before the first request
        if cycle is None and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """A server that wakes up only once a second, and yet stops at once when `end` is called.

    The server of uvicorn wakes up ten times a second, to check whether it must stop.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ended: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Serve until `end` is called."""
        self._ended, self._loop = asyncio.Event(), asyncio.get_running_loop()
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), TICK_S)

    def end(self) -> None:
        """Make the server stop. Another thread than the server's calls this method."""
        self.should_exit = True
        if self._ended is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended already
                self._loop.call_soon_threadsafe(self._ended.set)


def make_server(settings: Settings, handle: AgentHandle) -> Server:
    """Return a server for the pages. It does not listen yet."""
    access = Access(
        token=settings.smith_http_token.get_secret_value(),
        proxies=settings.smith_http_proxies,
        user_header=settings.smith_http_user_header,
        is_local=is_local(settings.smith_http_addr),
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
            timeout_graceful_shutdown=SHUTDOWN_S,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
    )
