"""Serves the HTTP pages in a separate thread. If the port cannot be opened, the agent runs without the pages."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from executor.log import get_logger
from executor.settings.settings import Settings
from executor.web.agent_view import AgentHandle
from executor.web.tls import CertificateUnusable, ServerCertificate

if TYPE_CHECKING:
    from executor.web.serve import Server

log = get_logger(__name__)

#: Maximum number of connections that wait until the server accepts them.
BACKLOG = 64
#: The maximum time for which `stop` waits for the end of the thread.
STOP_TIMEOUT_S = 3.0


@contextlib.contextmanager
def serving_pages(settings: Settings) -> Iterator[AgentHandle]:
    """Serve the pages while the `with` block runs. Yield the handle through which the pages read the agent.

    The caller calls the handle's `attach` when the agent exists. Until then, the pages cannot show the agent's data.
    The pages are not served if SMITH_HTTP_ADDR is `off`, the port cannot be opened, or the TLS certificate is not
    usable. In each of these three cases, the `with` block runs without the pages.
    """
    handle = AgentHandle()
    server_thread = None
    if settings.smith_http_addr != "off":
        server_thread = _start_server(settings, handle)
    try:
        yield handle
    finally:
        handle.close()  # ends the checks of Proxmox, database and disk space that the pages show
        if server_thread is not None:
            server_thread.stop()


def _start_server(settings: Settings, handle: AgentHandle) -> _ServerThread | None:
    """Start the server. If this fails, log the reason and return None."""
    address, certificate = settings.smith_http_addr, None
    if settings.smith_http_tls_certificate is not None:
        try:
            certificate = ServerCertificate(settings.smith_http_tls_certificate, settings.smith_http_tls_key)
        except CertificateUnusable as error:
            log.error("http_not_served", address=address, reason=str(error))
            return None
    listener = _open_listener(address)
    if listener is None:
        return None
    handle.port = listener.getsockname()[1]
    return _ServerThread(settings, handle, listener, certificate)


def _open_listener(address: str) -> socket.socket | None:
    """Return a socket that listens on this address. If this fails, log the reason and return None."""
    host, _, port = address.rpartition(":")
    try:
        family, socket_type, protocol, _, socket_address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(family, socket_type, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(socket_address)
            listener.listen(BACKLOG)
            stack.pop_all()  # keeps the socket open after the block
    except OSError as error:
        log.error("http_not_served", address=address, reason=error.strerror or str(error))
        return None
    log.info("http_served", address=address, port=listener.getsockname()[1])
    return listener


class _ServerThread:
    """Runs the uvicorn server in a separate thread."""

    def __init__(
        self,
        settings: Settings,
        handle: AgentHandle,
        listener: socket.socket,
        certificate: ServerCertificate | None,
    ) -> None:
        self._settings = settings
        self._handle = handle
        self._listener = listener
        self._certificate = certificate
        self._server: Server | None = None
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the server. Requests in progress have one second to end."""
        self._is_stopping = True
        if self._server is not None:
            self._server.request_stop()
        self._thread.join(STOP_TIMEOUT_S)
        self._listener.close()

    def _run(self) -> None:
        # The import takes a third of a second. In this thread, the import does not delay the agent's start.
        from executor.web.serve import make_server  # noqa: PLC0415

        # With a lower log level than ERROR, uvicorn would log a line for each bad request.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._server = make_server(self._settings, self._handle, self._certificate)
        if not self._is_stopping:
            self._server.run(sockets=[self._listener])
