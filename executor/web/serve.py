"""uvicorn as we want it. Imported by the server's own thread, because it takes a while."""

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

#: Connections at once; more are answered with 503.
MOST_CONNECTIONS = 64
#: A caller who has not said a whole question for this long is not asking.
REQUEST_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 5
MOST_HEADER_BYTES = 16_384
SHUTDOWN_S = 1
#: How often the Date header changes.
TICK_S = 1.0


class _Impatient(H11Protocol):
    """Closes connections on which no question comes: uvicorn itself would keep them for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.loop.call_later(REQUEST_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        cycle: Any = self.cycle
        if cycle is None and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Looks once a second whether it is to end, and at once when it is told; uvicorn wakes up ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._over: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Serve until `end` is called."""
        self._over, self._loop = asyncio.Event(), asyncio.get_running_loop()
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), TICK_S)

    def end(self) -> None:
        """Stop serving; called from another thread."""
        self.should_exit = True
        if self._over is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._over.set)


def make_server(settings: Settings, stage: AgentHandle) -> Server:
    """Return a server that listens on nothing yet."""
    access = Access(
        token=settings.smith_http_token.get_secret_value(),
        proxies=settings.smith_http_proxies,
        user_header=settings.smith_http_user_header,
        is_local=is_local(settings.smith_http_addr),
    )
    return Server(
        uvicorn.Config(
            make_app(stage, access),
            loop="asyncio",
            http=_Impatient,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        )
    )
