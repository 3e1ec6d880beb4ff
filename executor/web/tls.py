"""Serves the web pages over TLS: loads the certificate again when its files change, and limits the TLS handshakes."""

from __future__ import annotations

import asyncio
import ssl
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from pathlib import Path
from typing import Any

from executor.log import get_logger
from executor.web.access import parse_ip

log = get_logger(__name__)

#: Interval at which the server checks whether the files of the certificate have changed.
CHECK_INTERVAL_S = 60.0
#: The server closes a connection whose handshake has not ended within this time.
HANDSHAKE_TIMEOUT_S = 10
#: Maximum number of connections whose handshakes have not ended: from all callers together, from other machines
#: together, and from one address of another machine. The server closes every further connection at once.
MAX_HANDSHAKES, MAX_HANDSHAKES_FROM_OTHER_MACHINES, MAX_HANDSHAKES_PER_ADDRESS = 64, 48, 16

#: For each file: the time of its last change in ns, and its size in bytes; (0, 0) if the file cannot be read.
_FileVersions = tuple[tuple[int, int], ...]


class CertificateUnusable(Exception):
    """The certificate or its key cannot be read, or the two do not belong together. The text contains the reason."""


class ServerCertificate:
    """The certificate and the key of the server. New connections use a renewed certificate, without a restart."""

    def __init__(self, certificate: Path, key: Path | None) -> None:
        """Load the certificate. If `key` is None, the certificate's file has the key. Raises CertificateUnusable."""
        self._files = (certificate, key or certificate)
        self._loaded_versions = self._file_versions()
        self.context = self._load_context()
        self._checked_at = time.monotonic()

    def reload_if_due_and_changed(self) -> None:
        """Call `reload_if_changed` if the last check of the files was at least CHECK_INTERVAL_S ago."""
        if time.monotonic() - self._checked_at >= CHECK_INTERVAL_S:
            self.reload_if_changed()

    def reload_if_changed(self) -> None:
        """Load the certificate if a file has changed. If this fails, keep the old certificate and log the reason."""
        self._checked_at = time.monotonic()
        versions = self._file_versions()
        if versions == self._loaded_versions:
            return
        self._loaded_versions = versions
        try:
            self.context = self._load_context()
        except CertificateUnusable as error:
            log.warning("http_certificate_refused", reason=str(error))
        else:
            log.info("http_certificate_loaded", certificate=str(self._files[0]))

    def _load_context(self) -> ssl.SSLContext:
        certificate, key = self._files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # If no password were passed, OpenSSL would ask for the password of an encrypted key on the terminal.
            context.load_cert_chain(certificate, key, password="")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise CertificateUnusable(f"{certificate} with {key}: {reason}") from error
        return context

    def _file_versions(self) -> _FileVersions:
        versions = []
        for file in self._files:
            try:
                status = file.stat()
            except OSError:
                versions.append((0, 0))
            else:
                versions.append((status.st_mtime_ns, status.st_size))
        return tuple(versions)


class TlsConnection(SSLProtocol):
    """One connection with TLS. It passes the decrypted data to `protocol`, the asyncio protocol that handles HTTP.

    This class limits the number and the duration of handshakes. Asyncio itself does not limit their number, and lets
    each handshake take a minute.
    """

    def __init__(self, protocol: asyncio.Protocol, context: ssl.SSLContext, handshakes: set[TlsConnection]) -> None:
        """`handshakes` contains all connections of the server whose handshakes have not ended."""
        super().__init__(
            asyncio.get_running_loop(),
            protocol,
            context,
            waiter=None,  # type: ignore[arg-type]  # no coroutine waits for the handshake
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
        )
        self._handshakes = handshakes
        #: The address of the caller; None if the caller is on this machine.
        self._remote_address: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake, or close the connection if there are too many handshakes."""
        address = parse_ip(str((transport.get_extra_info("peername") or ("",))[0]))
        self._remote_address = None if address is None or address.is_loopback else str(address)
        if self._exceeds_limit():
            assert isinstance(transport, asyncio.Transport)  # noqa: S101 (the transport of a socket)
            transport.abort()
            return
        self._handshakes.add(self)
        super().connection_made(transport)

    def _exceeds_limit(self) -> bool:
        if len(self._handshakes) >= MAX_HANDSHAKES:
            return True
        if self._remote_address is None:
            return False
        addresses = [connection._remote_address for connection in self._handshakes if connection._remote_address]
        return (
            len(addresses) >= MAX_HANDSHAKES_FROM_OTHER_MACHINES
            or addresses.count(self._remote_address) >= MAX_HANDSHAKES_PER_ADDRESS
        )

    def stop_counting_handshake(self) -> None:
        """Stop counting this handshake, which has ended or failed.

        After a successful handshake, `protocol` calls this method through its attribute
        `on_tls_handshake_end`.
        """
        self._handshakes.discard(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop counting the handshake if it has not ended."""
        self.stop_counting_handshake()
        super().connection_lost(exc)


def tls_connection_factory(
    make_protocol: Callable[..., Any], certificate: ServerCertificate
) -> Callable[..., asyncio.BaseProtocol]:
    """Return a function that creates a connection with TLS.

    `make_protocol` creates the asyncio protocol that handles HTTP. This protocol gets the decrypted data.
    """
    handshakes: set[TlsConnection] = set()

    def make_connection(**arguments: Any) -> asyncio.BaseProtocol:
        protocol = make_protocol(**arguments)
        connection = TlsConnection(protocol, certificate.context, handshakes)
        protocol.on_tls_handshake_end = connection.stop_counting_handshake
        return connection

    return make_connection
