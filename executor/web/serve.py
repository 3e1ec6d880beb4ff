"""uvicorn as we want it. Imported by the server's own thread, because it takes a while."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from executor.setting_types import is_local
from executor.settings import Settings
from executor.web.app import make_app
from executor.web.guard import Access
from executor.web.watched import Stage

#: Connections at once; more are answered with 503.
MOST_CONNECTIONS = 64
#: A caller who has not said a whole question for this long is not asking.
REQUEST_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 5
MOST_HEADER_BYTES = 16_384
SHUTDOWN_S = 1


class _Impatient(H11Protocol):
    """Closes connections on which no question comes: uvicorn itself would keep them for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.loop.call_later(REQUEST_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        cycle: Any = self.cycle
        if cycle is None and not self.transport.is_closing():
            self.transport.close()


def make_server(settings: Settings, stage: Stage) -> uvicorn.Server:
    """Return a server that listens on nothing yet."""
    access = Access(
        token=settings.smith_http_token.get_secret_value(),
        proxies=settings.smith_http_proxies,
        user_header=settings.smith_http_user_header,
        is_local=is_local(settings.smith_http_addr),
    )
    return uvicorn.Server(
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
