"""Configures the uvicorn server of the agent's web pages.

Only the server's thread imports this module, because the import of uvicorn takes a third of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from executor.settings.settings import Settings
from executor.settings.types import is_local_address
from executor.web.access import Access, parse_ip
from executor.web.agent_view import AgentHandle
from executor.web.app import make_app
from executor.web.streams import StreamCounter
from executor.web.tls import ServerCertificate, tls_connection_factory

#: Two maxima of simultaneous connections. The first counts all callers, the second only callers on other machines. The
#: difference is reserved for callers on this machine, such as the container's health check. The server immediately
#: closes each connection that exceeds a maximum.
MAX_CONNECTIONS = 64
MAX_CONNECTIONS_FROM_OTHER_MACHINES = 56
#: Maximum number of connections from one address of another machine. The limit does not apply to a trusted reverse
#: proxy.
MAX_CONNECTIONS_PER_ADDRESS = 16
#: The server closes a connection on which the headers of a request do not arrive completely within this time.
REQUEST_TIMEOUT_S = 10.0
#: After a response, the server closes the connection if no data arrives within this time.
KEEP_ALIVE_S = 5
MAX_HEADER_BYTES = 16_384
#: When the server stops, requests in progress have this time to end.
SHUTDOWN_TIMEOUT_S = 1
#: Interval at which the server wakes up to update the Date header of its responses.
TICK_S = 1.0


class _LimitedProtocol(H11Protocol):
    """Limits the number of connections, and closes connections on which the headers of a request do not arrive.

    Without this class, uvicorn would keep a connection open for ever if only a part of the headers has arrived.
    """

    #: The addresses and networks of trusted reverse proxies. `make_server` sets them in a subclass.
    proxy_networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    #: With TLS, `tls_connection_factory` sets this function. It subtracts one from the counter of running TLS
    #: handshakes, and must be called when the TLS handshake has ended. None without TLS.
    on_tls_handshake_end: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn declares this type
        """Accept the connection, or close it if there are too many connections."""
        super().connection_made(transport)
        if self.on_tls_handshake_end is not None:
            self.on_tls_handshake_end()
        self._request_timer: asyncio.TimerHandle | None = None
        if self._exceeds_limit():
            transport.abort()
        else:
            self._start_request_timer()

    def data_received(self, data: bytes) -> None:
        """Process data from the caller. Complete headers stop the timer; a part of the headers does not restart it."""
        super().data_received(data)
        if self._is_request_running():
            self._stop_request_timer()
        elif self._request_timer is None:
            self._start_request_timer()

    def on_response_complete(self) -> None:
        """Wait for the next request on the connection."""
        super().on_response_complete()
        if not self._is_request_running():  # uvicorn may have begun the next request already (pipelining)
            self._start_request_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer of the connection."""
        self._stop_request_timer()
        super().connection_lost(exc)

    def _exceeds_limit(self) -> bool:
        """Return whether this connection, which is already counted, exceeds one of the limits."""
        if len(self.connections) > MAX_CONNECTIONS:
            return True
        address = self._remote_address()
        if address is None:
            return False
        connections: Any = self.connections  # uvicorn's type does not know this class
        addresses = [
            remote_address for connection in connections if (remote_address := connection._remote_address()) is not None
        ]
        if len(addresses) > MAX_CONNECTIONS_FROM_OTHER_MACHINES:
            return True
        is_proxy = any(address in network for network in self.proxy_networks)
        return not is_proxy and addresses.count(address) > MAX_CONNECTIONS_PER_ADDRESS

    def _remote_address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """Return the address of the caller; None if the caller is on this machine."""
        address = parse_ip(self.client[0]) if self.client else None
        return None if address is None or address.is_loopback else address

    def _is_request_running(self) -> bool:
        cycle: Any = self.cycle  # uvicorn's object for the latest request; None before the first request
        return cycle is not None and not cycle.response_complete

    def _start_request_timer(self) -> None:
        self._stop_request_timer()
        self._request_timer = self.loop.call_later(REQUEST_TIMEOUT_S, self._close_without_request)

    def _stop_request_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _close_without_request(self) -> None:
        self._request_timer = None
        if not self._is_request_running() and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """A server that wakes up once a second, and stops at once when `request_stop` is called.

    Uvicorn's own server wakes up ten times a second to check whether it must stop.
    """

    def __init__(
        self, config: uvicorn.Config, event_streams: StreamCounter, certificate: ServerCertificate | None = None
    ) -> None:
        super().__init__(config)
        self._event_streams = event_streams  # counts and ends the responses that send events to a browser
        self._certificate = certificate
        self._stop_requested: asyncio.Event | None = None
        self._event_loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Serve until `request_stop` is called."""
        self._stop_requested, self._event_loop = asyncio.Event(), asyncio.get_running_loop()
        # `on_tick` returns whether the server must stop. With `counter=0`, `on_tick` also updates the Date header.
        while not await self.on_tick(counter=0):
            if self._certificate is not None:
                self._certificate.reload_if_due_and_changed()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop_requested.wait(), TICK_S)

    def request_stop(self) -> None:
        """Make the server stop. A thread that is not the server's thread calls this method."""
        self.should_exit = True
        if self._stop_requested is not None and self._event_loop is not None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended already
                self._event_loop.call_soon_threadsafe(self._event_streams.end_all_streams)
                self._event_loop.call_soon_threadsafe(self._stop_requested.set)


def make_server(settings: Settings, handle: AgentHandle, certificate: ServerCertificate | None = None) -> Server:
    """Return a server for the web pages, with TLS if `certificate` is given. The server does not listen yet.

    From `handle`, the web pages get the data that they show about the agent.
    """
    access = Access(  # who may read the web pages
        token=settings.smith_http_token.get_secret_value(),
        proxies=settings.smith_http_proxies,
        proxy_user_header=settings.smith_http_user_header,
        # True if the server listens on a loopback address
        can_only_local_callers_connect=is_local_address(settings.smith_http_addr),
        # True if users of this machine may read the web pages without a login
        may_local_users_read_pages=settings.smith_http_local_pages,
    )
    proxy_networks = tuple(ipaddress.ip_network(proxy) for proxy in settings.smith_http_proxies)
    protocol = type("_Protocol", (_LimitedProtocol,), {"proxy_networks": proxy_networks})
    app = make_app(handle, access)
    make_protocol: Any = protocol if certificate is None else tls_connection_factory(protocol, certificate)
    return Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http=make_protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ),
        app.state.event_streams,
        certificate,
    )
