"""Tells a service manager how we are: systemd, or whoever else listens on the socket that NOTIFY_SOCKET names.

Without one nothing happens. Lowest layer, standard library only; a datagram that cannot be sent is lost, not awaited.
Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Mapping

#: Whoever has read them takes them out of what children get: they would speak in our name.
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"
STATUS = "STATUS="
#: Pings within one watchdog time: two may come late or get lost.
PINGS = 3
MOST_STATUS_CHARS = 200


class Notifier:
    """One socket's voice. Nothing is said twice in a row but the ping."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # An abstract socket's name begins with NUL, for which the variable has an @.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path if path.startswith("/") else ""
        self._ping_s = _watchdog_s(environ) / PINGS
        self._pinged_at = float("-inf")
        self._is_ready = False
        self._status = ""

    def ready(self) -> None:
        """Say that the start is over, once."""
        if not self._is_ready:
            self._is_ready = True
            self._send(READY)

    def status(self, text: str) -> None:
        """Say in one line what we are at, when it is something else than before."""
        line = "".join(char if char.isprintable() else " " for char in text)[:MOST_STATUS_CHARS]
        if line != self._status:
            self._status = line
            self._send(STATUS + line)

    def ping(self) -> None:
        """Say that we move, as often as the watchdog wants to hear it. Call it whenever that is true."""
        now = time.monotonic()
        if self._ping_s > 0 and now - self._pinged_at >= self._ping_s:
            self._pinged_at = now
            self._send(WATCHDOG)

    def stopping(self) -> None:
        """Say that we are about to leave."""
        self._send(STOPPING)

    def _send(self, line: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
            mouth.sendto(line.encode(), socket.MSG_DONTWAIT, self._address)


@functools.cache
def notifier() -> Notifier:
    """Return the voice of this process; its variables leave the environment."""
    return Notifier({name: os.environ.pop(name) for name in VARIABLES if name in os.environ})


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Return the watchdog's time, 0 without one or when it is not meant for this process."""
    microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or pid not in ("", str(os.getpid())):
        return 0.0
    return int(microseconds) / 1_000_000
