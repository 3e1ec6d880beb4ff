"""Sends progress messages from the agent to the supervisor through a pipe, and parses them in the supervisor.

The agent writes one byte per iteration of its main loop. It also writes a line when it is ready, and a line when its
status text changes. The supervisor forwards the lines to the service manager (systemd, podman). An agent without a
supervisor sends its messages to the service manager directly. If there is no service manager, nothing is sent. This
module uses the standard library only.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import stat

from executor.processes import sd_notify
from executor.processes.sd_notify import Notifier

#: The environment variable that contains the file descriptor of the pipe's write end.
PIPE_VARIABLE = "SMITH_PROGRESS_FD"
PROGRESS_BYTE = b"."
#: POSIX guarantees that a write of at most this size to a pipe is atomic. The bytes of longer messages of two threads
#: may be mixed.
MAX_MESSAGE_BYTES = 512


class ProgressSender:
    """Sends the agent's messages through the pipe, or to the service manager if the agent has no pipe."""

    def __init__(self) -> None:
        self._fd = _find_inherited_pipe()
        self._was_ready_sent = False
        self._status = ""
        if self._fd is not None:
            # The supervisor sends USR1 before it kills a stalled agent. The handler of USR1 writes the stack of every
            # thread to stderr, without the values of variables.
            faulthandler.register(signal.SIGUSR1)

    def report_progress(self) -> None:
        """Report that the main loop runs. Never blocks, never raises, and ignores a full pipe."""
        if self._fd is None:
            sd_notify.notifier().send_watchdog_ping()
        else:
            self._write(PROGRESS_BYTE)

    def report_ready(self) -> None:
        """Report that the agent is ready."""
        if self._fd is None:
            sd_notify.notifier().send_ready()
        elif not self._was_ready_sent:
            self._was_ready_sent = self._write(f"{sd_notify.READY}\n".encode())

    def report_status(self, text: str) -> None:
        """Report the agent's status text if the text has changed."""
        if self._fd is None:
            sd_notify.notifier().send_status(text)
        elif text != self._status:
            max_text_bytes = MAX_MESSAGE_BYTES - len(sd_notify.STATUS_PREFIX) - len("\n")
            one_line = " ".join(text.split()).encode(errors="replace")[:max_text_bytes]
            if self._write(sd_notify.STATUS_PREFIX.encode() + one_line + b"\n"):
                self._status = text

    def _write(self, data: bytes) -> bool:
        """Write to the pipe; return False when that fails."""
        if self._fd is None:
            return False
        with contextlib.suppress(OSError):
            os.write(self._fd, data)
            return True
        return False


class ProgressParser:
    """Parses what the supervisor has read from the pipe, and forwards the lines to the service manager.

    Progress bytes are skipped here: the supervisor counts any data from the pipe as progress.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._incomplete_line = b""
        self.is_ready = False  #: True if the agent has reported that it is ready

    def parse(self, data: bytes) -> None:
        """Parse bytes from the pipe. Keep an incomplete last line for the next call."""
        *complete_lines, incomplete_line = (self._incomplete_line + data).split(b"\n")
        self._incomplete_line = incomplete_line.lstrip(PROGRESS_BYTE)[:MAX_MESSAGE_BYTES]
        for line in complete_lines:
            self._forward_message(line.lstrip(PROGRESS_BYTE).decode(errors="replace"))

    def _forward_message(self, message: str) -> None:
        if message == sd_notify.READY:
            self.is_ready = True
            self._notifier.send_ready()
        elif message.startswith(sd_notify.STATUS_PREFIX):
            self._notifier.send_status(message.removeprefix(sd_notify.STATUS_PREFIX))


def _find_inherited_pipe() -> int | None:
    """Return the file descriptor in PIPE_VARIABLE; None when the variable is not set or does not name an open pipe.

    A process may inherit the variable but not the pipe. Then the descriptor may belong to another open file.
    """
    value = os.environ.get(PIPE_VARIABLE, "")
    if not value.isdecimal():
        return None
    fd = int(value)
    with contextlib.suppress(OSError, OverflowError):  # raised when no file with this descriptor is open
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
            return fd
    return None
