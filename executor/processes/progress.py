"""The agent's sign of life: a byte in the supervisor's pipe whenever its main loop moves, and a dump when it does not.

A line in the same pipe says that the start is over, or what the agent is at; the supervisor tells systemd. An agent
without a supervisor tells it itself. Low layer, standard library only. Without either nothing happens.
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
BEAT = b"."
#: A message fits into the pipe as one piece: more bytes may be mixed with another thread's.
MOST_MESSAGE_BYTES = 512


class Progress:
    """The agent's end of the pipe; any number of these may be made, all in the agent's own process."""

    def __init__(self) -> None:
        self._fd = _inherited_pipe()
        self._is_ready = False
        self._status = ""
        if self._fd is not None:
            # The supervisor sends it before it kills us: every thread's stack to stderr, without any value.
            faulthandler.register(signal.SIGUSR1)

    def beat(self) -> None:
        """Say that we move. Never blocks and never raises: a full pipe means that enough was said."""
        if self._fd is None:
            notify.notifier().ping()
        else:
            self._write(BEAT)

    def ready(self) -> None:
        """Say that the start is over."""
        if self._fd is None:
            notify.notifier().ready()
        elif not self._is_ready:
            self._is_ready = self._write(f"{notify.READY}\n".encode())

    def status(self, text: str) -> None:
        """Say what we are at."""
        if self._fd is None:
            notify.notifier().status(text)
        elif text != self._status:
            line = " ".join(text.split()).encode(errors="replace")[: MOST_MESSAGE_BYTES - len(notify.STATUS) - 1]
            if self._write(notify.STATUS.encode() + line + b"\n"):
                self._status = text

    def _write(self, data: bytes) -> bool:
        with contextlib.suppress(OSError):
            os.write(self._fd or 0, data)
            return True
        return False


class Listener:
    """The supervisor's end: takes messages out of what came through the pipe and passes them on."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._rest = b""
        self.has_begun = False  #: its start is over

    def take(self, data: bytes) -> None:
        """Take in what was read."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest.lstrip(BEAT)[:MOST_MESSAGE_BYTES]
        for line in lines:
            self._pass_on(line.lstrip(BEAT).decode(errors="replace"))

    def _pass_on(self, message: str) -> None:
        if message == notify.READY:
            self.has_begun = True
            self._notifier.ready()
        elif message.startswith(notify.STATUS):
            self._notifier.status(message.removeprefix(notify.STATUS))


def _inherited_pipe() -> int | None:
    """The pipe that the variable names, if it does name one.

    The number may have been inherited without the file: what bears it now could be a database's socket.
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
