"""Runs a command in a terminal of its own (a pseudo-terminal), waits for its texts and types answers."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TIMEOUT_S = 400.0


class TerminalProgram:
    """A running program. What it shows is in `shown`."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> None:
        self.shown = ""
        self._read_to = 0
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execvpe(command[0], list(command), dict(env))  # noqa: S606  the terminal is the child's own

    def expect(self, text: str) -> None:
        """Wait until the program shows the text, later than the texts of earlier calls. Raises AssertionError."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.shown[self._read_to :]:
            assert self._read(deadline - time.monotonic()), f"no {text!r} in:\n{self.shown}"
        self._read_to = self.shown.index(text, self._read_to) + len(text)

    def answer(self, question: str, text: str) -> None:
        """Wait for a question, and type the answer."""
        self.expect(question)
        os.write(self._terminal, f"{text}\n".encode())

    def answer_hidden(self, question: str, text: str) -> None:
        """Wait for a question whose answer is not shown, and type the answer once the echo is off."""
        self.expect(question)
        deadline = time.monotonic() + TIMEOUT_S
        while termios.tcgetattr(self._terminal)[3] & termios.ECHO:
            assert time.monotonic() < deadline, f"the answer to {question!r} would be shown"
            time.sleep(0.01)
        os.write(self._terminal, f"{text}\n".encode())

    def end(self) -> int:
        """Wait until the program ends; return its exit code."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._read(deadline - time.monotonic()):
            pass
        _pid, status = os.waitpid(self.pid, 0)
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """End the program if it still runs."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _read(self, timeout_s: float) -> bool:
        """Read what the program shows; return False at its end, and after the timeout."""
        if not select.select([self._terminal], [], [], max(timeout_s, 0))[0]:
            return False
        try:
            output = os.read(self._terminal, 65_536)
        except OSError:  # Linux answers EIO when the program has closed the terminal
            return False
        self.shown += output.decode(errors="replace").replace("\r\n", "\n")
        return bool(output)
