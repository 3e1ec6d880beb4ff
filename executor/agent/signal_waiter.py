"""Waits in the main thread until a signal arrives or a time has passed."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from types import TracebackType

#: Maximum number of bytes that one read takes from the socket. The socket contains one byte per signal, and fewer than
#: READ_BYTES signals arrive between two reads.
READ_BYTES = 4096


class SignalWaiter:
    """Ends a wait of the main thread when a signal with a handler arrives. Used in a `with` block.

    `time.sleep` would continue after the handler has run. Here, Python writes a byte to a socket when a signal arrives,
    and `wait` waits for this byte. So a wait ends at once even if the signal arrived just before the wait.
    """

    _reader: socket.socket
    _writer: socket.socket

    def __enter__(self) -> SignalWaiter:
        """Let each signal from now on end a wait. Only the main thread may call this."""
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    def wait(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` for a signal. Return at once if a signal has arrived since the last wait."""
        if select.select([self._reader], [], [], timeout_s)[0]:
            with contextlib.suppress(BlockingIOError):
                self._reader.recv(READ_BYTES)
