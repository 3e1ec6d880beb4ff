"""Starts the agent process for the supervisor, reads its progress messages, and kills it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from executor.processes import process_tree, progress


class AgentProcess:
    """A started agent process, as the supervisor uses it."""

    def __init__(self, pid: int, progress_reader: int, listener: progress.Listener) -> None:
        self.pid = pid
        self.progress = progress_reader
        self._listener = listener
        self.status: int | None = None  #: the wait status of the process; None while the process runs
        self.is_pipe_closed = False  #: the agent has closed its end of the progress pipe
        self.is_killed = False  #: the supervisor has sent SIGKILL
        self.silence_s = 0.0  #: time since the last progress message
        self._read_at = time.monotonic()

    @property
    def is_ready(self) -> bool:
        """True when the agent has reported that it is ready."""
        return self._listener.is_ready

    def read_progress(self, tick_s: float) -> None:
        """Read the progress messages and update `silence_s`.

        `tick_s` is the interval of the supervisor's loop. Each call adds at most two intervals to `silence_s`. So the
        time during which both processes were suspended (SIGSTOP, a paused VM) does not count as silence.
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
        """Send SIGKILL to the agent."""
        self.is_killed = True
        process_tree.send(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def started_agent(command: list[str], env: dict[str, str], listener: progress.Listener) -> Iterator[AgentProcess]:
    """Start an agent. The kernel kills it with SIGKILL when the supervisor dies.

    SIGTERM would not be enough: the agent would wait for its running jobs for minutes, while the next supervisor would
    already start another agent on the same database. The agent's runs end, too: each run has a guard (process_tree.py),
    which ends the run when the agent's end of a pipe is closed.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.set_inheritable(writer, True)
        full_command = [*process_tree.command_tied_to(os.getpid()), *command]
        pid = process_tree.spawn(full_command, {**env, progress.VARIABLE: str(writer)})
    finally:
        os.close(writer)
    try:
        yield AgentProcess(pid, reader, listener)
    finally:
        os.close(reader)
