"""Sends progress messages from the agent to the supervisor through a pipe.

The agent writes one byte per iteration of its main loop, and a line when it is ready or its status changes. The
supervisor forwards the lines to systemd. An agent without a supervisor sends them to systemd itself. Without systemd,
nothing is sent. This module uses the standard library only.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import stat

from executor.processes import sd_notify as notify
from executor.processes.sd_notify import Notifier

#: The environment variable that contains the file descriptor of the pipe's write end.
VARIABLE = "SMITH_PROGRESS_FD"
PROGRESS_BYTE = b"."
#: POSIX guarantees that a write of at most this size is atomic. A longer message may be mixed with that of another
#: thread.
MAX_MESSAGE_BYTES = 512


class Progress:
    """The agent's end of the pipe. One agent process may create several Progress objects."""

    def __init__(self) -> None:
        self._fd = _inherited_pipe()
        self._is_ready = False
        self._status = ""
        if self._fd is not None:
            # The supervisor sends USR1 before it kills a stalled agent. The handler writes the stack of every thread,
            # without values of variables, to stderr.
            faulthandler.register(signal.SIGUSR1)

    def report_progress(self) -> None:
        """Report to the supervisor that the main loop runs. Never blocks or raises; a full pipe is ignored."""
        if self._fd is None:
            notify.notifier().ping()
        else:
            self._write(PROGRESS_BYTE)

    def ready(self) -> None:
        """Report that the agent is ready."""
        if self._fd is None:
            notify.notifier().ready()
        elif not self._is_ready:
            self._is_ready = self._write(f"{notify.READY}\n".encode())

    def status(self, text: str) -> None:
        """Report the status line if it has changed."""
        if self._fd is None:
            notify.notifier().status(text)
        elif text != self._status:
            line = " ".join(text.split()).encode(errors="replace")[: MAX_MESSAGE_BYTES - len(notify.STATUS) - 1]
            if self._write(notify.STATUS.encode() + line + b"\n"):
                self._status = text

    def _write(self, data: bytes) -> bool:
        """Write to the pipe; return False when that fails."""
        with contextlib.suppress(OSError):
            os.write(self._fd or 0, data)
            return True
        return False


class Listener:
    """Parses the messages that the supervisor has read from the pipe, and forwards them to the service manager."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._incomplete_line = b""
        self.is_ready = False  #: the agent has reported that it is ready

    def take(self, data: bytes) -> None:
        """Parse bytes from the pipe. Keep an incomplete last line for the next call."""
        *lines, incomplete = (self._incomplete_line + data).split(b"\n")
        self._incomplete_line = incomplete.lstrip(PROGRESS_BYTE)[:MAX_MESSAGE_BYTES]
        for line in lines:
            self._forward(line.lstrip(PROGRESS_BYTE).decode(errors="replace"))

    def _forward(self, message: str) -> None:
        if message == notify.READY:
            self.is_ready = True
            self._notifier.ready()
        elif message.startswith(notify.STATUS):
            self._notifier.status(message.removeprefix(notify.STATUS))


def _inherited_pipe() -> int | None:
    """Return the file descriptor in the environment variable, None when it is not a pipe.

    A process may inherit the variable but not the pipe; then the same descriptor may be another open file.
    """
    name = os.environ.get(VARIABLE, "")
    if not name.isdecimal():
        return None
    with contextlib.suppress(OSError, OverflowError):
        if stat.S_ISFIFO(os.fstat(int(name)).st_mode):
            os.set_blocking(int(name), False)
            os.set_inheritable(int(name), False)
            return int(name)
    return None
