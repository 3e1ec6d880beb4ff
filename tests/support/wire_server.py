"""A server on a raw socket that sends given bytes, for responses that no HTTP library would send."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

#: What the server does with one request: bytes to send, or a function that is given the socket.
Reply = bytes | Callable[[socket.socket], None]


def reply(status: int = 200, body: Any = b"", *, kind: str = "application/json", **headers: str) -> bytes:
    """Return an HTTP response with a length. A body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


class WireServer:
    """Answers each request with the next reply, and later requests with the last one. `b""` closes the connection."""

    def __init__(self, *replies: Reply, tls: ssl.SSLContext | None = None) -> None:
        self.replies = list(replies)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self._tls = tls
        self._open: list[socket.socket] = []
        self._stopping = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def calls(self) -> list[str]:
        """The request lines, without the protocol."""
        return [line.rsplit(" ", 1)[0] for line, _, _ in self.requests]

    def __enter__(self) -> WireServer:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._threads[0].join()
        self._listener.close()
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for the client, or is stuck sending to it
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                continue
            self.connections += 1
            sock.settimeout(20)
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError), ExitStack() as stack:  # the client closed the connection, or the test has ended
            stack.callback(sock.close)
            wire = stack.enter_context(self._tls.wrap_socket(sock, server_side=True)) if self._tls else sock
            self._open.append(wire)
            lines = stack.enter_context(wire.makefile("rb"))
            while self._answer(wire, lines):
                pass

    def _answer(self, wire: socket.socket, lines: Any) -> bool:
        request_line = lines.readline().decode("latin-1").strip()
        if not request_line:
            return False
        headers = {}
        while line := lines.readline().decode("latin-1").strip():
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        self.requests.append((request_line, headers, lines.read(int(headers.get("content-length", "0")))))
        next_reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if callable(next_reply):
            next_reply(wire)
            return False
        wire.sendall(next_reply)
        return next_reply != b"" and b"\r\nConnection: close" not in next_reply


#: A function that starts a server with these replies.
Serve = Callable[..., WireServer]
