"""Progress messages from the agent to the supervisor, through a pipe.

The agent writes one byte per turn of its main loop, and a line when it is ready or when its status changes; the
supervisor forwards the lines to systemd. An agent without a supervisor notifies systemd itself. Low layer, standard
library only. Without supervisor and systemd nothing happens.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import stat

from executor.processes import sd_notify as notify
from executor.processes.sd_notify import Notifier

#: Names the file descriptor of the pipe's write end.
VARIABLE = "SMITH_PROGRESS_FD"
PROGRESS_BYTE = b"."
#: POSIX guarantees that a write of this size is atomic: longer ones may be mixed with another thread's.
MAX_MESSAGE_BYTES = 512


class Progress:
    """The agent's end of the pipe. Several instances may exist, all in the agent's own process."""

    def __init__(self) -> None:
        self._fd = _inherited_pipe()
        self._is_ready = False
        self._status = ""
        if self._fd is not None:
            # The supervisor sends USR1 before it kills us: writes the stack of every thread, without values, to stderr.
            faulthandler.register(signal.SIGUSR1)

    def report_progress(self) -> None:
        """Report progress. Never blocks and never raises: when the pipe is full, the supervisor has enough to read."""
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
        with contextlib.suppress(OSError):
            os.write(self._fd or 0, data)
            return True
        return False


class Listener:
    """The supervisor's end of the pipe: parses the messages and forwards them to the service manager."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._rest = b""
        self.is_ready = False  #: the agent has reported that it is ready

    def take(self, data: bytes) -> None:
        """Parse the bytes that were read from the pipe."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest.lstrip(PROGRESS_BYTE)[:MAX_MESSAGE_BYTES]
        for line in lines:
            self._forward(line.lstrip(PROGRESS_BYTE).decode(errors="replace"))

    def _forward(self, message: str) -> None:
        if message == notify.READY:
            self.is_ready = True
            self._notifier.ready()
        elif message.startswith(notify.STATUS):
            self._notifier.status(message.removeprefix(notify.STATUS))


def _inherited_pipe() -> int | None:
    """Return the file descriptor that the variable names, None when it is no pipe.

    The variable may be inherited without its file: the descriptor could now be a database's socket.
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
