"""Starts and ends a playbook server, waits until it is ready, reads its log, and measures its memory.

The playbook server is a process that has already imported Ansible. A warm run is a run in a fork of this process. The
module `forkserver` is the part of the server that forks. It writes READY to standard output when the server can accept
runs. When it refuses a run, it writes the reason to the server's log.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from executor.runs.warm import forkserver

#: How long a server may take to start. It needs about two seconds of CPU time.
START_TIMEOUT_S = 30.0
#: How long a server may take to end before it is killed.
END_TIMEOUT_S = 2.0
#: Number of runs after which a server is replaced. It is also replaced when its memory has grown by MAX_GROWTH_MIB.
#: Both limits reduce the effect of a memory leak.
MAX_RUNS_PER_SERVER = 2000
MAX_GROWTH_MIB = 64.0
#: Maximum length of the line of a server's log that an error message quotes.
MAX_REASON_LENGTH = 300
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ServerProcess:
    """One server process, which ends when the agent closes the pipe to its standard input or dies."""

    def __init__(self, folder: Path, start_number: int, env: Mapping[str, str], cwd: Path) -> None:
        """Start a server with the working directory `cwd`. Raises OSError if it cannot be started.

        `start_number` is 1 for the agent's first server, 2 for its second. It is a part of the names of the server's
        socket and log, which are in `folder`. The server's temporary files are in `folder` too.
        """
        self.run_count = 0  #: the number of runs that were assigned to this server
        self.socket_path = folder / f"playbook-{start_number}.sock"
        self.socket_path.unlink(missing_ok=True)
        self._log_path = folder / f"playbook-{start_number}.log"
        self._log_position = 0  #: the size of the part of the log that `read_reason_of_refused_run` has read
        self._memory_mib_at_start = 0.0
        # The agent finds the processes of a run by environment variables in /proc/<pid>/environ. Linux reads this file
        # from the memory in which the server got its variables at its start. A fork of the server writes variables of
        # its run to this memory. RESERVED_VARIABLE makes the memory large enough.
        reserved_memory = {forkserver.RESERVED_VARIABLE: "." * forkserver.RESERVED_BYTES}
        with self._log_path.open("wb") as log_file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "executor.runs.warm.playbook_server", str(self.socket_path), str(folder)],
                env={**env, **reserved_memory},
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,
            )

    def should_be_replaced(self) -> bool:
        """True when MAX_RUNS_PER_SERVER runs were assigned to the server, or its memory has grown too much."""
        return self.run_count >= MAX_RUNS_PER_SERVER or self._memory_mib() - self._memory_mib_at_start > MAX_GROWTH_MIB

    def wait_until_ready(self) -> None:
        """Wait until the server is ready. If the server ends instead, raise OSError with the last line of its log."""
        try:
            self._wait_for_first_line()
        except BaseException:
            self.end()
            raise

    def _wait_for_first_line(self) -> None:
        timer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        timer.start()
        with self._require_pipe(self.process.stdout) as output:
            first_line = output.readline()
        timer.cancel()
        if first_line != forkserver.READY:
            self.process.wait()
            log_lines = self._log_path.read_text(errors="replace").strip().splitlines()
            reason = log_lines[-1] if log_lines else f"it was not ready within {START_TIMEOUT_S:g} s"
            raise OSError(f"the playbook server did not start: {reason[:MAX_REASON_LENGTH]}")
        self._memory_mib_at_start = self._memory_mib()

    def read_reason_of_refused_run(self) -> str:
        """Return why the server has refused a run since the last call; '' if it has refused no run."""
        with contextlib.suppress(OSError), self._log_path.open("rb") as log_file:
            log_file.seek(self._log_position)
            new_bytes = log_file.read()
            self._log_position += len(new_bytes)
            new_lines = new_bytes.decode(errors="replace").splitlines()
            refusals = [line for line in new_lines if line.startswith(forkserver.REFUSED_LINE_START)]
            return refusals[-1].removeprefix(forkserver.REFUSED_LINE_START) if refusals else ""
        return ""

    def kill(self) -> None:
        """Kill a server that is not ready and therefore has no runs. `wait_until_ready` then raises OSError."""
        self.process.kill()

    def end(self) -> None:
        """End the server, wait for it, and remove its socket and log. Current runs continue."""
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for file in (self.socket_path, self._log_path):
            file.unlink(missing_ok=True)

    def _memory_mib(self) -> float:
        """Return the resident memory of the server in MiB; 0 if the server has ended."""
        try:
            _size, resident_pages, *_ = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()
        except OSError:
            return 0.0
        return int(resident_pages) * PAGE_BYTES / 1024 / 1024

    def _require_pipe(self, stream: IO[bytes] | None) -> IO[bytes]:
        """Return the stream. The check satisfies the type checker: `__init__` opens the stream as a pipe."""
        if stream is None:
            raise OSError("the playbook server has no pipe for its output")
        return stream
