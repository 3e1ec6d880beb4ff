"""Reports this process's state to the service manager (systemd, podman) through the socket that NOTIFY_SOCKET names.

This module does nothing without NOTIFY_SOCKET, and uses the standard library only. A datagram that cannot be sent at
once is dropped.
Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Mapping

#: These variables are removed from the environment after reading, so that child processes cannot send messages.
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"
STATUS = "STATUS="
#: Number of pings per watchdog timeout, so that two may be late or lost.
PINGS_PER_TIMEOUT = 3
MAX_STATUS_CHARS = 200


class Notifier:
    """An sd_notify client. Sends a state only when it changes, but repeats pings."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # The name of an abstract socket starts with NUL, which the variable writes as @.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path if path.startswith("/") else ""
        self._ping_s = _watchdog_s(environ) / PINGS_PER_TIMEOUT
        self._pinged_at = float("-inf")
        self._is_ready = False
        self._status = ""

    def ready(self) -> None:
        """Send READY at the first call."""
        if not self._is_ready:
            self._is_ready = True
            self._send(READY)

    def status(self, text: str) -> None:
        """Send the status line if it has changed."""
        line = "".join(char if char.isprintable() else " " for char in text)[:MAX_STATUS_CHARS]
        if line != self._status:
            self._status = line
            self._send(STATUS + line)

    def ping(self) -> None:
        """Send WATCHDOG, at most as often as the watchdog needs it. Call this as long as the process makes progress."""
        now = time.monotonic()
        if self._ping_s > 0 and now - self._pinged_at >= self._ping_s:
            self._pinged_at = now
            self._send(WATCHDOG)

    def stopping(self) -> None:
        """Send STOPPING."""
        self._send(STOPPING)

    def _send(self, line: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(line.encode(), socket.MSG_DONTWAIT, self._address)


@functools.cache
def notifier() -> Notifier:
    """Return the notifier of this process and remove its variables from the environment."""
    return Notifier({name: os.environ.pop(name) for name in VARIABLES if name in os.environ})


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Return the watchdog timeout; 0 when there is none, or when it applies to another process."""
    microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or pid not in ("", str(os.getpid())):
        return 0.0
    return int(microseconds) / 1_000_000
