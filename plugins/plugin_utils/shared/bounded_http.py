# SPDX-License-Identifier: Apache-2.0
"""Limits HTTP answers: the time until an answer is complete, and its size before and after decompression.

"Bounded" in a name means that these limits apply. The timeout of the library `requests` applies to each single read,
so a server that sends its answer byte by byte could occupy a thread for ever. `requests` does not limit the size of an
answer either.

In a playbook run, the time for the delivery of a request is limited, too. All runs of an agent process have the same
deadline. Whenever the agent process renews its leases, it writes a later deadline to a file, which `run_until.py`
reads. A request must not arrive after the deadline, because another agent process may then already process the job.
Without a limit, a request could arrive later: while a machine is cut off from Proxmox, its kernel sends the data again
and again, even after the process has ended.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from .run_until import RunDeadline, run_deadline_from_environment

#: Maximum size of an answer of Proxmox after decompression. The list of 10,000 guests has 5 MB. As Python objects, an
#: answer takes up to 33 times its size.
MAX_ANSWER_BYTES = 8 * 1024 * 1024
#: Maximum size of the header of an answer, together with interim answers such as `100 Continue`.
MAX_HEADER_BYTES = 1024 * 1024
#: The default of `answer_timeout_factor`: a complete answer may take this many times the timeout of one read.
ANSWER_TIMEOUT_FACTOR = 4.0
#: The timeout of one read if the request sets no timeout.
DEFAULT_TIMEOUT_S = 30.0
#: The number of bytes that are decompressed at once. The result may be a thousand times as long.
CHUNK_BYTES = 16 * 1024
#: The largest time limit of a delivery that the kernel accepts. Its type is a C int.
MAX_DELIVERY_MS = 2**31 - 1


class AnswerTooLarge(requests.RequestException):
    """The answer is larger than the limit."""


class BoundedAdapter(HTTPAdapter):
    """Sends the HTTP requests of a session of the library `requests`, and limits the answers.

    `max_bytes` limits the body after decompression, and `max_raw_bytes` the body before decompression. If `max_bytes`
    is None, the caller reads the body, and its size after decompression has no limit.
    """

    def __init__(
        self,
        *,
        max_bytes: int | None = MAX_ANSWER_BYTES,
        max_raw_bytes: int = MAX_ANSWER_BYTES,
        answer_timeout_factor: float = ANSWER_TIMEOUT_FACTOR,
        **options: Any,
    ) -> None:
        self._max_bytes = max_bytes
        run_deadline = run_deadline_from_environment(os.environ)
        self._bounded_pool_classes = _bounded_pool_classes(
            max_raw_bytes + MAX_HEADER_BYTES, answer_timeout_factor, run_deadline
        )
        super().__init__(**options)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Make pools whose connections limit their answers."""
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = self._bounded_pool_classes

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        """Make the pools of connections to a proxy. The connections limit their answers."""
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = self._bounded_pool_classes
        return manager

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        """Send a request and return the answer. If the body has a limit (`max_bytes`), the body is read here.

        Raises AnswerTooLarge and, like other adapters, the exceptions of `requests` and `urllib3`.
        """
        answer = super().send(request, *arguments, **options)
        if self._max_bytes is not None:
            untyped_answer: Any = answer
            untyped_answer._content = _read_body(answer, self._max_bytes)
            untyped_answer._content_consumed = True
        return answer


def _read_body(answer: requests.Response, max_bytes: int) -> bytes:
    """Return the decompressed body. Raises AnswerTooLarge as soon as more than `max_bytes` have been read."""
    # The chunks are collected in one growing buffer, because many small pieces would fragment the process's memory.
    body = io.BytesIO()
    try:
        for chunk in answer.raw.stream(CHUNK_BYTES, decode_content=True):
            body.write(chunk)
            if body.tell() > max_bytes:
                raise AnswerTooLarge(f"the answer is longer than {max_bytes} bytes")
    except BaseException:
        answer.close()
        raise
    return body.getvalue()


class _BoundedFile(io.RawIOBase):
    """Reads one answer from a socket, until the deadline has passed or too many bytes have arrived."""

    def __init__(self, sock: Any, deadline_monotonic_s: float, max_bytes: int) -> None:
        self._sock = sock
        self._file: socket.SocketIO = sock.makefile("rb", buffering=0)
        self._deadline_monotonic_s = deadline_monotonic_s
        self._remaining_bytes = max_bytes

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read bytes into the buffer. Raises TimeoutError after the deadline, and AnswerTooLarge."""
        remaining_s = self._deadline_monotonic_s - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError("the answer took too long")
        timeout_s = self._sock.gettimeout()
        try:
            self._sock.settimeout(remaining_s if timeout_s is None else min(timeout_s, remaining_s))
            byte_count = self._file.readinto(buffer)
        finally:
            with contextlib.suppress(OSError):  # the socket may be closed
                self._sock.settimeout(timeout_s)
        self._remaining_bytes -= byte_count or 0
        if self._remaining_bytes < 0:
            raise AnswerTooLarge("the answer is longer than the limit")
        return byte_count

    def close(self) -> None:
        """Close the file. The socket stays open."""
        self._file.close()
        super().close()


class _BoundedSocket:
    """Replaces the socket from which `http.client` reads one answer. It has only the method that is needed for this."""

    def __init__(self, sock: Any, deadline_monotonic_s: float, max_bytes: int) -> None:
        self._file = _BoundedFile(sock, deadline_monotonic_s, max_bytes)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return the file from which the answer is read."""
        return io.BufferedReader(self._file)


def _limit_delivery(sock: socket.socket, run_deadline: RunDeadline | None) -> None:
    """Make the kernel end the connection if sent data has not arrived at the deadline of the agent's runs.

    Without a limit, the kernel sends the data again and again for a quarter of an hour.
    """
    remaining_s = math.inf if run_deadline is None else run_deadline.remaining_s()
    if remaining_s == math.inf or not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    timeout_ms = int(min(max(remaining_s * 1000, 1), MAX_DELIVERY_MS))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)


def _bounded_pool_classes(
    max_bytes: int, answer_timeout_factor: float, run_deadline: RunDeadline | None
) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """Return the classes of connection pools that limit each request and each answer, by the scheme of a URL."""

    class _BoundedConnection:
        """Makes a connection limit the delivery of each request, and read each answer from a `_BoundedFile`."""

        timeout: Any  #: the timeout of one read; `urllib3` sets it before each answer
        sock: Any  #: the socket; None before the connection is made

        def connect(self) -> None:
            """Make the connection."""
            super().connect()  # type: ignore[misc]
            _limit_delivery(self.sock, run_deadline)

        def putrequest(self, *arguments: Any, **options: Any) -> None:
            """Begin a request, on a connection that may exist already."""
            if self.sock is not None:
                _limit_delivery(self.sock, run_deadline)
            super().putrequest(*arguments, **options)  # type: ignore[misc]

        def response_class(self, sock: Any, *arguments: Any, **options: Any) -> http.client.HTTPResponse:
            """Return the object that reads the answer. `http.client` calls this method before it reads the header."""
            timeout_s = self.timeout if isinstance(self.timeout, int | float) else DEFAULT_TIMEOUT_S
            bounded_socket: Any = _BoundedSocket(sock, time.monotonic() + timeout_s * answer_timeout_factor, max_bytes)
            return http.client.HTTPResponse(bounded_socket, *arguments, **options)

    class HTTPConnection(_BoundedConnection, urllib3.connection.HTTPConnection):  # type: ignore[misc]
        """A connection without TLS."""

    class HTTPSConnection(_BoundedConnection, urllib3.connection.HTTPSConnection):  # type: ignore[misc]
        """A connection with TLS."""

    class HTTPConnectionPool(urllib3.HTTPConnectionPool):
        """Connections without TLS."""

        ConnectionCls = HTTPConnection

    class HTTPSConnectionPool(urllib3.HTTPSConnectionPool):
        """Connections with TLS."""

        ConnectionCls = HTTPSConnection

    return {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}


class _AdapterClassReplacement:
    """Replaces `HTTPAdapter`, the class of the adapters of each new session of `requests`, by BoundedAdapter."""

    def __init__(self) -> None:
        self._requests_module: Any = requests.sessions
        self._lock = threading.Lock()
        self._replace_count = 0
        self._original_class: Any = None

    def replace_class(self) -> None:
        """Replace the class. Each call of this method needs its own call of `restore_class`."""
        with self._lock:
            if not self._replace_count:
                self._original_class = self._requests_module.HTTPAdapter
                self._requests_module.HTTPAdapter = BoundedAdapter
            self._replace_count += 1

    def restore_class(self) -> None:
        """Undo one call of `replace_class`. When no call is left, restore the class."""
        with self._lock:
            self._replace_count -= 1
            if not self._replace_count:
                self._requests_module.HTTPAdapter = self._original_class


_adapter_class_replacement = _AdapterClassReplacement()


@contextlib.contextmanager
def bounded_sessions() -> Iterator[None]:
    """Limit the answers of every session that is created in the `with` block, also by other libraries in this process.

    proxmoxer creates a second session for a login with a password. The Ansible modules that an action plugin executes
    in its own process create sessions, too.
    """
    _adapter_class_replacement.replace_class()
    try:
        yield
    finally:
        _adapter_class_replacement.restore_class()
