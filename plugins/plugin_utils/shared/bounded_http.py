# SPDX-License-Identifier: Apache-2.0
"""Limits the answers to HTTP requests: the time until an answer is complete, and its size before and after decoding.

The timeout of the library `requests` applies to each single read, so a server that sends its answer byte by byte could
occupy a thread for ever. `requests` does not limit the size of an answer either.

In a run, the time for the delivery of a request is limited, too. While a machine is cut off from Proxmox, its kernel
sends the data of a request again and again, even after the process has ended. The request must not arrive after the
moment at which the run must have ended (`run_until.py`), because then another agent may already process the job.
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

from .run_until import RunUntil, run_until_from_environment

#: Maximum size of an answer of Proxmox after decoding. The list of 10,000 guests has 5 MB. As Python objects, an answer
#: takes up to 33 times its size.
MAX_ANSWER_BYTES = 8 * 1024 * 1024
#: Maximum size of the header of an answer, and of the answers before it, such as `100 Continue`.
MAX_HEADER_BYTES = 1024 * 1024
#: By default, an answer must be complete within the timeout of one read, multiplied by this factor.
ANSWER_TIMEOUT_FACTOR = 4.0
#: The timeout of one read if a request has none.
DEFAULT_TIMEOUT_S = 30.0
#: The number of bytes that are decoded at a time. The decoded text may be a thousand times as long.
CHUNK_BYTES = 16 * 1024
#: The largest time that can be given to the kernel as the limit of a delivery: its type is a C int.
MAX_DELIVERY_MS = 2**31 - 1


class AnswerTooLarge(requests.RequestException):
    """The answer is larger than the limit. `RequestException` is a subclass of OSError."""


class BoundedAdapter(HTTPAdapter):
    """Sends the requests of a session of `requests`, and limits their answers.

    If `max_bytes` is None, the body is not read here, and only the size before decoding and the time are limited.
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
        run_until = run_until_from_environment(os.environ)
        self._bounded_pool_classes = _bounded_pool_classes(
            max_raw_bytes + MAX_HEADER_BYTES, answer_timeout_factor, run_until
        )
        super().__init__(**options)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Make pools whose connections limit their answers."""
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = self._bounded_pool_classes

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        """Make pools of connections to a proxy that limit their answers."""
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = self._bounded_pool_classes
        return manager

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        """Send a request and return the answer, with its body if there is a limit for the body.

        Raises AnswerTooLarge and, like other adapters, the exceptions of `requests` and `urllib3`.
        """
        answer = super().send(request, *arguments, **options)
        if self._max_bytes is not None:
            requests_answer: Any = answer
            requests_answer._content = _read_body(answer, self._max_bytes)
            requests_answer._content_consumed = True
        return answer


def _read_body(answer: requests.Response, max_bytes: int) -> bytes:
    """Return the decoded body. Raises AnswerTooLarge before more than `max_bytes` are kept."""
    # One growing buffer, because many small pieces fragment the memory: the JSON text would not fit into the gaps.
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
            count = self._file.readinto(buffer)
        finally:
            with contextlib.suppress(OSError):  # the socket may be closed
                self._sock.settimeout(timeout_s)
        self._remaining_bytes -= count or 0
        if self._remaining_bytes < 0:
            raise AnswerTooLarge("the answer is longer than the limit")
        return count

    def close(self) -> None:
        """Close the file. The socket stays open."""
        self._file.close()
        super().close()


class _BoundedSocket:
    """The part of a socket that `http.client` uses to read one answer."""

    def __init__(self, sock: Any, deadline_monotonic_s: float, max_bytes: int) -> None:
        self._file = _BoundedFile(sock, deadline_monotonic_s, max_bytes)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return the file from which the answer is read."""
        return io.BufferedReader(self._file)


def _limit_delivery(sock: socket.socket, run_until: RunUntil | None) -> None:
    """Make the kernel end the connection if what was sent has not arrived when the run must have ended.

    Without a limit, the kernel sends it again and again for a quarter of an hour.
    """
    left_s = math.inf if run_until is None else run_until.left_s()
    if left_s == math.inf or not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    timeout_ms = int(min(max(left_s * 1000, 1), MAX_DELIVERY_MS))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)


def _bounded_pool_classes(
    max_bytes: int, answer_timeout_factor: float, run_until: RunUntil | None
) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """Return the classes of connection pools that limit each request and each answer, by the scheme of a URL."""

    class _Bounded:
        """Makes a connection limit the delivery of each request, and read each answer from a `_BoundedFile`."""

        timeout: Any  #: the timeout of one read; `urllib3` sets it before each answer
        sock: Any  #: the socket; None before the connection is made

        def connect(self) -> None:
            """Make the connection."""
            super().connect()  # type: ignore[misc]
            _limit_delivery(self.sock, run_until)

        def putrequest(self, *arguments: Any, **options: Any) -> None:
            """Begin a request, on a connection that may exist already."""
            if self.sock is not None:
                _limit_delivery(self.sock, run_until)
            super().putrequest(*arguments, **options)  # type: ignore[misc]

        def response_class(self, sock: Any, *arguments: Any, **options: Any) -> http.client.HTTPResponse:
            """Return the object that reads the answer. `http.client` calls this method before it reads the header."""
            timeout_s = self.timeout if isinstance(self.timeout, int | float) else DEFAULT_TIMEOUT_S
            bounded: Any = _BoundedSocket(sock, time.monotonic() + timeout_s * answer_timeout_factor, max_bytes)
            return http.client.HTTPResponse(bounded, *arguments, **options)

    class HTTPConnection(_Bounded, urllib3.connection.HTTPConnection):  # type: ignore[misc]
        """A connection without TLS."""

    class HTTPSConnection(_Bounded, urllib3.connection.HTTPSConnection):  # type: ignore[misc]
        """A connection with TLS."""

    class HTTPConnectionPool(urllib3.HTTPConnectionPool):
        """Connections without TLS."""

        ConnectionCls = HTTPConnection

    class HTTPSConnectionPool(urllib3.HTTPSConnectionPool):
        """Connections with TLS."""

        ConnectionCls = HTTPSConnection

    return {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}


class _DefaultAdapter:
    """Replaces the class of the adapters that `requests` gives to each new session. `bounded_sessions` uses this."""

    def __init__(self) -> None:
        self._requests_module: Any = requests.sessions
        self._lock = threading.Lock()
        self._replace_count = 0
        self._original_class: Any = None

    def replace(self) -> None:
        """Replace the class. It stays replaced until each caller has called `restore`."""
        with self._lock:
            if not self._replace_count:
                self._original_class = self._requests_module.HTTPAdapter
                self._requests_module.HTTPAdapter = BoundedAdapter
            self._replace_count += 1

    def restore(self) -> None:
        """Undo one `replace`."""
        with self._lock:
            self._replace_count -= 1
            if not self._replace_count:
                self._requests_module.HTTPAdapter = self._original_class


_default_adapter = _DefaultAdapter()


@contextlib.contextmanager
def bounded_sessions() -> Iterator[None]:
    """Limit the answers of every session that is created in the `with` block, also by other libraries in this process.

    proxmoxer creates a session of its own for a login with a password, and so does a module that runs in this process.
    """
    _default_adapter.replace()
    try:
        yield
    finally:
        _default_adapter.restore()
