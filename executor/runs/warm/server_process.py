"""Starts and ends the two server processes of warm runs, waits until they are ready, and measures their memory.

A warm run is a fork of a server process that has already imported Ansible. The playbook server runs playbooks, and the
module server runs the modules of community.proxmox in these playbooks.
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

#: How long a server may take to start. Its imports need a second of CPU time.
START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 2.0
#: A pair of servers is replaced after this many runs, or when the memory of one server has grown by MAX_GROWTH_MIB.
#: This limits the effect of a memory leak.
MAX_RUNS_PER_SERVER = 2000
MAX_GROWTH_MIB = 64.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ServerPair:
    """A playbook server and the module server that its runs use."""

    def __init__(self, folder: Path, number: int, env: Mapping[str, str], cwd: Path) -> None:
        """Start both servers and wait until they are ready. Raises OSError if one does not start."""
        self.runs = 0
        self.playbooks = ServerProcess("playbook", folder / f"playbook-{number}", env, cwd)
        self.modules = ServerProcess("module", folder / f"module-{number}", env, cwd)
        self.servers = (self.playbooks, self.modules)
        try:
            for server in self.servers:
                server.wait_until_ready()
        except BaseException:
            self.end()
            raise

    def should_recycle(self) -> bool:
        """True when the pair has served MAX_RUNS_PER_SERVER runs, or one server's memory has grown too much."""
        return self.runs >= MAX_RUNS_PER_SERVER or any(server.growth_mib() > MAX_GROWTH_MIB for server in self.servers)

    def end(self) -> None:
        """End both servers. Current runs continue under their guards."""
        for server in self.servers:
            server.end()


class ServerProcess:
    """One server process.

    Its standard input is a pipe from the agent; it ends when the agent closes the pipe or dies.
    """

    def __init__(self, name: str, file: Path, env: Mapping[str, str], cwd: Path) -> None:
        """Start the server. The path of its socket is `file` with the suffix .sock, of its log `file` with .log.

        `name` is "playbook" or "module". The server's working directory is `cwd`.
        """
        self.name = name
        self.socket = file.with_suffix(".sock")
        self.socket.unlink(missing_ok=True)
        self._log = file.with_suffix(".log")
        self._log_position = 0
        self._mib_at_start = 0.0
        reserved = {forkserver.RESERVED_VARIABLE: "." * forkserver.RESERVED_BYTES}
        with self._log.open("wb") as log_file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"executor.runs.warm.{name}_server", str(self.socket), str(file.parent)],
                env={**env, **reserved},
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait until the server writes READY. If it ends before, raise OSError with the last line of its log."""
        timer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        timer.start()
        with self._pipe(self.process.stdout) as output:
            line = output.readline()
        timer.cancel()
        if line != forkserver.READY:
            self.process.wait()
            lines = self._log.read_text(errors="replace").strip().splitlines() or ["it did not start in time"]
            raise OSError(f"the {self.name} server did not start: {lines[-1][:300]}")
        self._mib_at_start = self._mib()

    def read_refusal(self) -> str:
        """Return why the server has refused a run since the last call; '' if it has refused none."""
        with contextlib.suppress(OSError), self._log.open("rb") as log_file:
            log_file.seek(self._log_position)
            new = log_file.read()
            self._log_position += len(new)
            prefix = forkserver.REFUSED_LINE
            lines = [line for line in new.decode(errors="replace").splitlines() if line.startswith(prefix)]
            return lines[-1].removeprefix(prefix) if lines else ""
        return ""

    def growth_mib(self) -> float:
        """Return how much the server's memory has grown since its start."""
        return self._mib() - self._mib_at_start

    def end(self) -> None:
        """End the server, wait for it, and remove its socket and log."""
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for file in (self.socket, self._log):
            file.unlink(missing_ok=True)

    def _mib(self) -> float:
        """Return the memory of the server in MiB; 0 if the server has ended."""
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1]
        except OSError:
            return 0.0
        return int(pages) * PAGE_BYTES / 1024 / 1024

    def _pipe(self, stream: IO[bytes] | None) -> IO[bytes]:
        if stream is None:
            raise OSError(f"the {self.name} server has no output")
        return stream
