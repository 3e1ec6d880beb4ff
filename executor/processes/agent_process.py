"""The agent's process as the supervisor sees it: how it is started, its progress messages, its end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from executor.processes import process_tree, progress


class AgentProcess:
    """The agent's process as the supervisor sees it."""

    def __init__(self, pid: int, progress_reader: int, listener: progress.Listener) -> None:
        self.pid = pid
        self.progress = progress_reader
        self._listener = listener
        self.status: int | None = None  #: wait status, None while it runs
        self.is_pipe_closed = False  #: the agent has closed its end
        self.is_killed = False
        self.silence_s = 0.0
        self._read_at = time.monotonic()

    @property
    def is_ready(self) -> bool:
        """True when it has reported that it is ready."""
        return self._listener.is_ready

    def read_progress(self, tick_s: float) -> None:
        """Read the progress messages and update `silence_s`.

        Silence is summed over calls, at most two intervals of the loop (`tick_s`) for each: when both processes were
        suspended for an hour (SIGSTOP, a paused VM), that is not an hour of silence.
        """
        now = time.monotonic()
        self.silence_s += min(now - self._read_at, 2 * tick_s)
        self._read_at = now
        with contextlib.suppress(BlockingIOError):
            if data := os.read(self.progress, 65536):
                self.silence_s = 0.0
                self._listener.take(data)
            else:
                self.is_pipe_closed = True

    def kill(self) -> None:
        """Send SIGKILL."""
        self.is_killed = True
        process_tree.send(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def started_agent(command: list[str], env: dict[str, str], listener: progress.Listener) -> Iterator[AgentProcess]:
    """Start an agent; the kernel kills it when the supervisor dies.

    With SIGKILL, not TERM: the next supervisor starts an agent on the same database, while this one would drain for
    minutes. Its runs end too: their guards notice the closed pipe.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.set_inheritable(writer, True)
        tied = [*process_tree.tied_command(os.getpid()), *command]
        pid = process_tree.spawn(tied, {**env, progress.VARIABLE: str(writer)})
    finally:
        os.close(writer)
    try:
        yield AgentProcess(pid, reader, listener)
    finally:
        os.close(reader)
