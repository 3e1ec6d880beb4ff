"""A proxy that tunnels connections with CONNECT, and records their targets."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK_BYTES = 65_536
TIMEOUT_S = 30.0


@dataclass
class ConnectProxy:
    """The address of the proxy. Of each request for a tunnel, oldest first: the target, and the login at the proxy."""

    url: str
    targets: list[str] = field(default_factory=list)
    logins: list[str | None] = field(default_factory=list)


@contextmanager
def connect_proxy(*, refuses: bool = False) -> Iterator[ConnectProxy]:
    """Run a proxy while the block runs. With `refuses`, it refuses every tunnel."""

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            proxy.targets.append(self.path)
            proxy.logins.append(self.headers["Proxy-Authorization"])
            if refuses:
                self.send_error(407)
                return
            host, _, port = self.path.rpartition(":")
            with closing(socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S)) as target:
                self.send_response(200)
                self.end_headers()
                _copy(self.connection, target)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy = ConnectProxy(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _copy(first: socket.socket, second: socket.socket) -> None:
    """Copy bytes in both directions until one side ends or is silent for TIMEOUT_S."""
    while readable := select.select([first, second], [], [], TIMEOUT_S)[0]:
        for source in readable:
            data = source.recv(CHUNK_BYTES)
            if not data:
                return
            (second if source is first else first).sendall(data)
