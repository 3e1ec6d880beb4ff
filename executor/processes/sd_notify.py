"""Reports this process's state to the service manager (systemd, podman) through a socket.

The environment variable NOTIFY_SOCKET contains the address of the socket. Without the variable, this module does
nothing. It uses the standard library only. A message that cannot be sent at once is dropped.
Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Mapping

#: The variables that the service manager sets. This module removes them from the environment, so that child processes
#: cannot send messages.
NOTIFY_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG_PING = "WATCHDOG=1"
STATUS_PREFIX = "STATUS="
#: Number of pings per watchdog timeout. With three, the timeout does not expire when one ping is lost.
PINGS_PER_TIMEOUT = 3
MAX_STATUS_CHARS = 200


class Notifier:
    """A client of sd_notify."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _socket_address(environ.get("NOTIFY_SOCKET", ""))
        self._ping_interval_s = _watchdog_timeout_s(environ) / PINGS_PER_TIMEOUT  #: 0 when there is no watchdog
        self._pinged_at = float("-inf")
        self._was_ready_sent = False
        self._status = ""

    def send_ready(self) -> None:
        """Send READY at the first call."""
        if not self._was_ready_sent:
            self._was_ready_sent = True
            self._send(READY)

    def send_status(self, text: str) -> None:
        """Send the status text if the text has changed."""
        printable = "".join(char if char.isprintable() else " " for char in text)
        line = printable[:MAX_STATUS_CHARS]
        if line != self._status:
            self._status = line
            self._send(STATUS_PREFIX + line)

    def send_watchdog_ping(self) -> None:
        """Send WATCHDOG_PING if the ping interval has passed.

        The caller stops its calls when the agent makes no progress.
        """
        now = time.monotonic()
        if self._ping_interval_s > 0 and now - self._pinged_at >= self._ping_interval_s:
            self._pinged_at = now
            self._send(WATCHDOG_PING)

    def send_stopping(self) -> None:
        """Send STOPPING."""
        self._send(STOPPING)

    def _send(self, line: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(line.encode(), socket.MSG_DONTWAIT, self._address)


@functools.cache
def notifier() -> Notifier:
    """Return the notifier of this process. The first call removes NOTIFY_VARIABLES from the environment."""
    return Notifier({name: os.environ.pop(name) for name in NOTIFY_VARIABLES if name in os.environ})


def _socket_address(notify_socket: str) -> str:
    """Return the address of the socket in NOTIFY_SOCKET; '' when the value is not an address.

    The name of an abstract socket starts with NUL. NOTIFY_SOCKET contains @ in place of NUL.
    """
    if notify_socket.startswith("@"):
        return f"\0{notify_socket[1:]}"
    return notify_socket if notify_socket.startswith("/") else ""


def _watchdog_timeout_s(environ: Mapping[str, str]) -> float:
    """Return the watchdog timeout in seconds; 0 when no watchdog watches this process."""
    microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or pid not in ("", str(os.getpid())):
        return 0.0
    return int(microseconds) / 1_000_000
