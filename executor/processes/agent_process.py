"""Starts and kills the agent process, and reads the progress messages that the agent sends through a pipe.

This module is used by the supervisor, the parent process of the agent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from executor.processes import process_tree, progress

#: Maximum number of bytes that are read from the progress pipe at once.
MAX_READ_BYTES = 65536


class AgentProcess:
    """An agent process that the supervisor has started."""

    def __init__(self, pid: int, progress_fd: int, parser: progress.ProgressParser) -> None:
        self.pid = pid
        self.progress_fd = progress_fd  #: the supervisor's end of the progress pipe
        self._parser = parser
        self.wait_status: int | None = None  #: the status that `os.waitpid` returned; None while the process runs
        self.is_progress_pipe_closed = False  #: True if the agent has closed its end of the progress pipe
        self.was_kill_sent = False  #: True if the supervisor has sent SIGKILL
        self.no_progress_s = 0.0  #: time since the last progress message; `read_progress` adds to it
        self._last_read_at = time.monotonic()

    @property
    def is_ready(self) -> bool:
        """True when the agent has reported that it is ready: its first call to FulcrumCore has succeeded or failed."""
        return self._parser.is_ready

    def read_progress(self, loop_interval_s: float) -> None:
        """Read the progress messages and update `no_progress_s`.

        `loop_interval_s` is the interval of the supervisor's loop. Each call adds at most two intervals to
        `no_progress_s`. So a long time during which the supervisor and the agent were suspended (SIGSTOP, a paused VM)
        counts only as two intervals.
        """
        now = time.monotonic()
        self.no_progress_s += min(now - self._last_read_at, 2 * loop_interval_s)
        self._last_read_at = now
        with contextlib.suppress(BlockingIOError):  # raised when there is no message
            data = os.read(self.progress_fd, MAX_READ_BYTES)
            if data:
                self.no_progress_s = 0.0
                self._parser.parse(data)
            else:
                self.is_progress_pipe_closed = True

    def kill(self) -> None:
        """Send SIGKILL to the agent."""
        self.was_kill_sent = True
        process_tree.send_signal(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def start_agent(command: list[str], env: dict[str, str], parser: progress.ProgressParser) -> Iterator[AgentProcess]:
    """Start an agent process. The kernel sends SIGKILL to the agent when the supervisor dies.

    The signal is not SIGTERM: after SIGTERM, the agent waits for its running jobs for minutes. Meanwhile, the next
    supervisor would start another agent on the same database. When the agent dies, its playbook runs end: each run has
    a parent process, the guard (process_tree.py), which ends the run when the agent's pipe to the guard is closed.
    """
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.set_inheritable(write_fd, True)
        full_command = [*process_tree.killed_with_parent_prefix(os.getpid()), *command]
        # PIPE_VARIABLE is the name of the environment variable from which the agent reads the number of its pipe end.
        pid = process_tree.spawn(full_command, {**env, progress.PIPE_VARIABLE: str(write_fd)})
    finally:
        os.close(write_fd)
    try:
        yield AgentProcess(pid, read_fd, parser)
    finally:
        os.close(read_fd)
