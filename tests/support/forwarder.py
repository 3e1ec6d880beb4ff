"""Forwards HTTP requests to one server, and records each request with its answer."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from smith_lab.simulator.history import HistoryEntry

ANSWER_TIMEOUT_S = 60.0
#: Headers that describe one connection. They are not forwarded, because the other connection differs.
CONNECTION_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host"})


@dataclass(kw_only=True)
class Exchange(HistoryEntry):
    """A request and its answer. `status` is None if no answer has arrived."""

    headers: dict[str, str] = field(default_factory=dict)  #: of the answer
    answer: Any = None  #: the answer's body: parsed, if it is JSON


@dataclass
class Forwarder:
    """Forwards the requests to one port. If no answer arrives, it ends the caller's connection without an answer.

    It opens one connection for each request and repeats no request, so that a request arrives at most once.
    """

    target: int
    #: Called with each exchange when it ends, in any thread. Then the answer's body, which may be large, is dropped.
    on_end: Callable[[Exchange], None] = lambda _exchange: None
    exchanges: list[Exchange] = field(default_factory=list)
    port: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def entries(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the exchanges after this sequence number, oldest first, as the simulator's history does."""
        return [dict(vars(exchange)) for exchange in self.exchanges[since:]]

    def forward(self, method: str, target: str, headers: dict[str, str], data: bytes) -> tuple[Exchange, bytes]:
        """Send a request; return the exchange and the answer's body. Raises OSError or HTTPException without one."""
        exchange = self._record_request(method, target, data)
        started = time.monotonic()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=ANSWER_TIMEOUT_S)
            try:
                connection.request(method, target, data or None, headers)
                response = connection.getresponse()
                content = response.read()
            finally:
                connection.close()
            exchange.headers = dict(response.getheaders())
            exchange.answer = parse_body(content)
            exchange.status = response.status
            if response.status >= 400:
                exchange.error = content.decode(errors="replace")
            return exchange, content
        finally:
            exchange.duration_s = time.monotonic() - started
            self.on_end(exchange)
            exchange.answer = None

    def _record_request(self, method: str, target: str, data: bytes) -> Exchange:
        path, _, query = target.partition("?")
        with self._lock:
            exchange = Exchange(
                seq=len(self.exchanges) + 1,
                time=time.time(),
                method=method,
                path=path,
                query=query,
                body=parse_body(data),
            )
            self.exchanges.append(exchange)
        return exchange


def parse_body(content: bytes) -> Any:
    """Return the JSON in a body, or else its text; None for an empty body."""
    try:
        return json.loads(content) if content else None
    except ValueError:
        return content.decode(errors="replace")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, forwarder: Forwarder) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.forwarder = forwarder


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _forward(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in CONNECTION_HEADERS}
        try:
            exchange, content = self.server.forwarder.forward(self.command, self.path, headers, data)
        except (OSError, http.client.HTTPException):
            self.close_connection = True
            return
        self.send_response_only(exchange.status or 0)
        for name, value in exchange.headers.items():
            if name.lower() not in CONNECTION_HEADERS:
                self.send_header(name, value)
        if exchange.status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _forward

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def handle_one_request(self) -> None:
        """Handle one request; a caller that has ended its connection is no error."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True


@contextmanager
def running_forwarder(target: int, on_end: Callable[[Exchange], None] = lambda _exchange: None) -> Iterator[Forwarder]:
    """Run a forwarder while the block runs."""
    forwarder = Forwarder(target, on_end)
    server = _Server(forwarder)
    forwarder.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, name="forwarder", daemon=True)
    thread.start()
    try:
        yield forwarder
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
