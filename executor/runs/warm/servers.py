"""Starts, checks and replaces the servers of warm runs, and makes the command of each run.

A warm run is a fork of a server process that has already imported Ansible. A cold run is a new ansible-playbook
process. There is one pair of servers: the playbook server runs playbooks, and the module server runs the modules of
community.proxmox in these playbooks. While a server does not work, runs are cold, and `warm_unavailable` is logged once
for each reason. After RESTART_BACKOFF_S, a new pair is started.
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
from executor.runs.warm.compatibility import why_warm_runs_unavailable
from executor.runs.warm.server_process import START_TIMEOUT_S, ServerPair

log = get_logger(__name__)

#: How long a run waits for the first start of the servers before it is executed cold.
MAX_WAIT_FOR_START_S = 10.0
#: Minimum time between two probes. A probe is an empty request, which a working server refuses. A server is probed only
#: when a run is about to start.
PROBE_INTERVAL_S = 10.0
#: How long a server may take to answer a probe.
PROBE_TIMEOUT_S = 2.0
#: Minimum time between two starts of a pair of servers. It does not apply to the replacement of a pair that works.
RESTART_BACKOFF_S = 30.0
#: The script that the agent runs for each warm run.
CLIENT = Path(__file__).with_name("client.py")


class WarmServers:
    """The pair of servers that an agent uses for its warm runs."""

    def __init__(self, folder: Path, cwd: Path, environment: Callable[[], Mapping[str, str]]) -> None:
        """Set the servers' private folder, their working directory and their environment.

        `environment` returns the servers' environment. It is the environment of a run whose private folder is `folder`.
        """
        self._folder = folder
        self._cwd = cwd
        self._make_environment = environment
        self._lock = threading.Lock()
        self._pair: ServerPair | None = None  #: the pair that new runs use
        self._start_count = 0  #: the number of starts so far, which is part of the names of the sockets
        self._probed_at = 0.0
        self._start_after = 0.0  #: no pair is started before this point in `time.monotonic()`
        self._start_thread: threading.Thread | None = None  #: the thread that starts a pair, or has started one
        self._logged_reasons: set[str] = set()  #: the reasons of cold runs that were already logged
        self._is_closed = False

    def start(self) -> None:
        """Start both servers in the background."""
        if reason := why_warm_runs_unavailable():
            self.log_unavailable(reason)
            self._is_closed = True  # later runs then start no servers
            return
        with self._lock:
            self._start_pair_in_thread()

    def command(self, playbook_command: list[str], path_variable: str) -> list[str]:
        """Return the command that executes `playbook_command` as a warm run.

        If no server works, return the command of a cold run under a guard: a process that supervises the run.
        `path_variable` is the run's PATH.
        """
        program = shutil.which(playbook_command[0], path=path_variable)
        pair = self._choose_pair() if program else None
        if pair is None or program is None:
            return [*process_tree.guard_prefix(), *playbook_command]
        sockets = [str(pair.playbook_server.socket), str(pair.module_server.socket)]
        isolated_python = [sys.executable, "-I", "-S"]
        return [*isolated_python, str(CLIENT), *sockets, process_tree.SCRIPT, program, *playbook_command[1:]]

    def pids(self) -> list[int]:
        """Return the process ids of the current playbook server and module server, in this order."""
        with self._lock:
            return [server.process.pid for server in self._pair.servers] if self._pair else []

    def close(self) -> None:
        """End all servers. Current runs continue."""
        self._is_closed = True
        if (start_thread := self._start_thread) is not None:
            start_thread.join(START_TIMEOUT_S)
        with self._lock:
            pair, self._pair = self._pair, None
        if pair is not None:
            pair.end()

    def log_unavailable(self, reason: str) -> None:
        """Log why runs are cold. Each reason is logged only once."""
        if reason not in self._logged_reasons:
            self._logged_reasons.add(reason)
            log.warning("warm_unavailable", reason=reason)

    # --- choosing the servers of a run ------------------------------------------------------------------------------

    def _choose_pair(self) -> ServerPair | None:
        """Return the servers for a run; None if the run must be cold. While a first pair is starting, wait for it."""
        start_thread = self._start_thread
        if self._pair is None and start_thread is not None:
            start_thread.join(MAX_WAIT_FOR_START_S)
        with self._lock:
            pair = None if self._is_closed else self._pair
            reason = self._why_unusable(pair) if pair else ""
            if pair is None or reason:
                self._pair = None
                self._start_pair_in_thread()
            else:
                pair.run_count += 1
                if pair.should_be_replaced():
                    self._start_after = 0.0  # a replacement needs no backoff
                    self._start_pair_in_thread()
        if reason and pair is not None:
            self.log_unavailable(reason)
            pair.end()
            return None
        return pair

    def _why_unusable(self, pair: ServerPair) -> str:
        """Return why the pair cannot execute runs; '' if it can. Also log why a server has refused a run."""
        for server in pair.servers:
            if server.process.poll() is not None:
                return f"the {server.name} server ended with {server.process.returncode}"
            if refusal := server.read_refusal():
                self.log_unavailable(refusal)
                if server is pair.playbook_server:  # this server would refuse each later run for the same reason
                    return refusal
        now = time.monotonic()
        if now - self._probed_at < PROBE_INTERVAL_S:
            return ""
        self._probed_at = now
        for server in pair.servers:
            if not protocol.is_answering(str(server.socket), PROBE_TIMEOUT_S):
                return f"the {server.name} server does not answer"
        return ""

    # --- starting a pair of servers ---------------------------------------------------------------------------------

    def _start_pair_in_thread(self) -> None:
        """Start a new pair in a thread, unless a pair is starting or the backoff has not passed.

        The caller holds the lock.
        """
        now = time.monotonic()
        is_starting = self._start_thread is not None and self._start_thread.is_alive()
        if self._is_closed or is_starting or now < self._start_after:
            return
        self._start_after = now + RESTART_BACKOFF_S
        self._start_count += 1
        self._start_thread = threading.Thread(
            target=self._start_pair, args=(self._start_count,), name="warm-start", daemon=True
        )
        self._start_thread.start()

    def _start_pair(self, number: int) -> None:
        """Start a pair of servers, use it for new runs, and end the pair that was used before."""
        try:
            pair = ServerPair(self._folder, number, self._make_environment(), self._cwd)
        except Exception as error:  # every error is only logged, because runs are cold without servers
            self.log_unavailable(str(error) or type(error).__name__)
            return
        with self._lock:
            self._probed_at = time.monotonic()
            old_pair, self._pair = self._pair, pair
        if old_pair is not None:
            old_pair.end()
        log.info("warm_servers_started", pids=[server.process.pid for server in pair.servers])
