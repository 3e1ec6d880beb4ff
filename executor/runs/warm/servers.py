"""Starts, checks and replaces the servers of warm runs, and makes the command of each run.

A warm run is a fork of a server process that has already imported Ansible. A cold run is a new ansible-playbook
process. There are two servers: the playbook server runs playbooks, and the module server runs the modules of
community.proxmox in these playbooks. When a server does not work, runs are cold, `warm_unavailable` is logged once for
each reason, and both servers are started again later.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from executor.log import get_logger
from executor.processes import process_tree
from executor.runs.warm import protocol
from executor.runs.warm.compatibility import why_unavailable
from executor.runs.warm.server_process import START_TIMEOUT_S, ServerPair

log = get_logger(__name__)

#: How long a run waits for the first start of the servers before it is executed cold.
MAX_WAIT_FOR_START_S = 10.0
#: Minimum time between two checks of the servers with an empty request. A check is made only when a run is to start.
PROBE_INTERVAL_S = 10.0
PROBE_TIMEOUT_S = 2.0
#: Minimum time between two starts of the servers, when they have ended or have not started.
RESTART_BACKOFF_S = 30.0
#: The script that the agent runs for each warm run.
CLIENT = Path(__file__).with_name("client.py")


class WarmServers:
    """The pair of servers that an agent uses for its warm runs."""

    def __init__(self, folder: Path, cwd: Path, environment: Callable[[], Mapping[str, str]]) -> None:
        """Set the servers' private folder, their working directory and their environment.

        `environment` returns the environment of a run whose private folder is `folder`.
        """
        self._folder = folder
        self._cwd = cwd
        self._environment = environment
        self._lock = threading.Lock()
        self._pairs: list[ServerPair] = []  #: new runs use the last pair
        self._starts = 0  #: the number of starts so far, which is part of the names of the sockets
        self._probed_at = 0.0
        self._start_after = 0.0  #: no pair is started before this point in `time.monotonic()`
        self._starting: threading.Thread | None = None
        self._logged: set[str] = set()  #: the reasons that were logged
        self._closed = False

    def start(self) -> None:
        """Start both servers in the background."""
        if reason := why_unavailable():
            self.log_unavailable(reason)
            self._closed = True
            return
        with self._lock:
            self._begin_start()

    def command(self, command: list[str], path: str) -> list[str]:
        """Return the command that executes `command` as a warm run.

        If no server works, it is the command of a cold run under a guard. `path` is the run's PATH.
        """
        program = shutil.which(command[0], path=path)
        pair = self._pair() if program else None
        if pair is None or program is None:
            return [*process_tree.guard_command(), *command]
        sockets = [str(pair.playbooks.socket), str(pair.modules.socket)]
        return [sys.executable, "-I", "-S", str(CLIENT), *sockets, process_tree.SCRIPT, program, *command[1:]]

    def pids(self) -> list[int]:
        """Return the process ids of the current playbook server and module server, in this order."""
        with self._lock:
            return [server.process.pid for pair in self._pairs[-1:] for server in pair.servers]

    def close(self) -> None:
        """End all servers. Current runs continue."""
        self._closed = True
        if (thread := self._starting) is not None:
            thread.join(START_TIMEOUT_S)
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.end()

    def log_unavailable(self, reason: str) -> None:
        """Log why runs are cold. Each reason is logged only once."""
        if reason not in self._logged:
            self._logged.add(reason)
            log.warning("warm_unavailable", reason=reason)

    # --- choosing the servers of a run ------------------------------------------------------------------------------

    def _pair(self) -> ServerPair | None:
        """Return the servers for a run; None if the run must be cold. Wait for the first start of the servers."""
        thread = self._starting
        if not self._pairs and thread is not None:
            thread.join(MAX_WAIT_FOR_START_S)
        with self._lock:
            pair = self._pairs[-1] if self._pairs and not self._closed else None
            reason = self._why_unusable(pair) if pair else ""
            if pair is None or reason:
                self._pairs = []
                self._begin_start()
            else:
                pair.runs += 1
                if pair.should_recycle():
                    self._start_after = 0.0
                    self._begin_start()
        if reason and pair is not None:
            self.log_unavailable(reason)
            pair.end()
            return None
        return pair

    def _why_unusable(self, pair: ServerPair) -> str:
        """Return why the pair cannot execute runs; '' if it can."""
        for server in pair.servers:
            if server.process.poll() is not None:
                return f"the {server.name} server ended with {server.process.returncode}"
            if refusal := server.read_refusal():
                self.log_unavailable(refusal)
                if server is pair.playbooks:  # the playbook server would refuse each later run for the same reason
                    return refusal
        now = time.monotonic()
        if now - self._probed_at < PROBE_INTERVAL_S:
            return ""
        self._probed_at = now
        for server in pair.servers:
            if not protocol.is_answering(str(server.socket), PROBE_TIMEOUT_S):
                return f"the {server.name} server does not answer"
        return ""

    # --- starting ---------------------------------------------------------------------------------------------------

    def _begin_start(self) -> None:
        """Start a new pair in a thread, unless a pair is starting or the backoff has not passed.

        The caller holds the lock.
        """
        now = time.monotonic()
        if self._closed or now < self._start_after or (self._starting is not None and self._starting.is_alive()):
            return
        self._start_after = now + RESTART_BACKOFF_S
        self._starts += 1
        self._starting = threading.Thread(target=self._start_pair, args=(self._starts,), name="warm-start", daemon=True)
        self._starting.start()

    def _start_pair(self, number: int) -> None:
        """Start a pair of servers, use it for new runs, and end the pair that was used before."""
        try:
            pair = ServerPair(self._folder, number, self._environment(), self._cwd)
        except Exception as error:  # no error may end the agent, because runs can be cold
            self.log_unavailable(str(error) or type(error).__name__)
            return
        with self._lock:
            self._probed_at = time.monotonic()
            replaced, self._pairs = self._pairs, [pair]
        for old_pair in replaced:
            old_pair.end()
        log.info("warm_servers_started", pids=[server.process.pid for server in pair.servers])
