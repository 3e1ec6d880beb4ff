"""Accepts TLS connections for a server without TLS, as a reverse proxy in front of FulcrumCore does."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smith_lab.proxmox.certificates import CertificateAuthority

#: The first byte of a TLS connection.
TLS_HANDSHAKE = b"\x16"
#: What Go's server answers to a request without TLS.
PLAIN_HTTP_REFUSAL = b"Client sent an HTTP request to an HTTPS server.\n"
READ_BYTES = 65536


class TlsFront:
    """Listens on a port of this machine, and forwards each TLS connection to another port."""

    def __init__(self, target_port: int, folder: Path) -> None:
        folder.mkdir()
        self._target_port = target_port
        self._authority = CertificateAuthority(folder)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.ca_bundle = folder / "ca.pem"
        self.use_certificate()
        threading.Thread(target=self._accept, daemon=True).start()

    def use_certificate(
        self, names: tuple[str, ...] = ("127.0.0.1", "localhost"), from_day: float = -1, until_day: float = 30
    ) -> None:
        """Present this certificate in new connections."""
        files = self._authority.issue("fulcrum", names, from_day=from_day, until_day=until_day)
        self._context.load_cert_chain(*files)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # `close` ends the loop
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if connection.recv(1, socket.MSG_PEEK) != TLS_HANDSHAKE:
                connection.recv(READ_BYTES)
                head = f"HTTP/1.0 400 Bad Request\r\nContent-Length: {len(PLAIN_HTTP_REFUSAL)}\r\n\r\n".encode()
                connection.sendall(head + PLAIN_HTTP_REFUSAL)
                return
            with (
                self._context.wrap_socket(connection, server_side=True) as client,
                socket.create_connection(("127.0.0.1", self._target_port)) as server,
            ):
                threading.Thread(target=_copy, args=(server, client), daemon=True).start()
                _copy(client, server)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(READ_BYTES):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def running_tls_front(target_port: int, folder: Path) -> Iterator[TlsFront]:
    front = TlsFront(target_port, folder)
    try:
        yield front
    finally:
        front.close()
