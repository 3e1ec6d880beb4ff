"""Starts, checks and replaces the server of warm runs, and makes the command of each run.

A warm run is a fork of a server process that has already imported Ansible: the playbook server. A cold run is a new
ansible-playbook process. When the server does not work, a new server is started, and runs wait for it: a cold run would
need as much CPU time as the start of a server. If the new server does not start, runs are cold and `warm_unavailable`
is logged once for each reason. The next run starts a server again if RESTART_BACKOFF_S has passed since the last start.
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
from executor.runs.warm.server_process import START_TIMEOUT_S, ServerProcess

log = get_logger(__name__)

#: Minimum time between two probes. A probe is an empty request. A server that functions answers it with a refusal. A
#: server is probed only when a run is about to start.
PROBE_INTERVAL_S = 10.0
#: How long a server may take to answer a probe.
PROBE_TIMEOUT_S = 2.0
#: Minimum time between two starts of a server. It does not apply when a server is replaced because it has
#: executed many runs or because its memory has grown.
RESTART_BACKOFF_S = 30.0
#: The script that the agent runs for each warm run. It asks the server to start the run, and waits for the run's end.
CLIENT_SCRIPT = Path(__file__).with_name("client.py")


class WarmServerKeeper:
    """Keeps one playbook server for the warm runs of an agent, and replaces this server when necessary."""

    def __init__(self, folder: Path, cwd: Path, make_environment: Callable[[], Mapping[str, str]]) -> None:
        """Prepare to start servers with the working directory `cwd`.

        `folder` contains the socket and the log of each server. `make_environment` returns the environment of a server.
        """
        self._folder = folder
        self._cwd = cwd
        self._make_environment = make_environment
        self._lock = threading.Lock()
        self._server: ServerProcess | None = None  #: the server that new runs use
        self._starting_server: ServerProcess | None = None  #: a server that is not ready yet
        self._start_count = 0  #: the number of starts so far, which is part of the names of the sockets
        self._probed_at = 0.0
        self._earliest_start_at = 0.0  #: no server is started before this time of the clock `time.monotonic()`
        self._start_thread: threading.Thread | None = None  #: the thread that starts a server, or has started one
        self._logged_reasons: set[str] = set()  #: the reasons that were already logged as `warm_unavailable`
        self._is_disabled = False  #: True if no server may be started or used any more

    def start(self) -> None:
        """Start the server in the background."""
        if reason := why_warm_runs_unavailable():
            self._log_reason_once(reason)
            self._is_disabled = True
            return
        with self._lock:
            self._start_server_in_thread()

    def make_command(self, playbook_command: list[str], search_path: str) -> list[str]:
        """Return the command that executes `playbook_command` as a warm run.

        If no server works, return the command of a cold run under a guard: a process that supervises the run.
        `search_path` is the value of the run's variable PATH.
        """
        program = shutil.which(playbook_command[0], path=search_path)
        server = self._choose_server() if program else None
        if server is None or program is None:
            return [*process_tree.guard_command_prefix(), *playbook_command]
        # If the server does not start the run, CLIENT_SCRIPT executes `process_tree.SCRIPT`, the guard of a cold run.
        isolated_python = [sys.executable, "-I", "-S"]
        client = [*isolated_python, str(CLIENT_SCRIPT), str(server.socket_path), process_tree.SCRIPT]
        return [*client, program, *playbook_command[1:]]

    def pid(self) -> int | None:
        """Return the process id of the current server; None if there is no server."""
        with self._lock:
            return self._server.process.pid if self._server else None

    def close(self) -> None:
        """End the current server and a server that is just starting. Current runs continue."""
        with self._lock:
            self._is_disabled = True
            server, self._server = self._server, None
            if self._starting_server is not None:
                self._starting_server.kill()
        if server is not None:
            server.end()
        if (start_thread := self._start_thread) is not None:
            start_thread.join(START_TIMEOUT_S)

    def _log_reason_once(self, reason: str) -> None:
        """Log `warm_unavailable` with the reason why runs are cold or the server is replaced, once for each reason."""
        if reason not in self._logged_reasons:
            self._logged_reasons.add(reason)
            log.warning("warm_unavailable", reason=reason)

    # --- choosing the server of a run -------------------------------------------------------------------------------

    def _choose_server(self) -> ServerProcess | None:
        """Return the server for a run; None if the run must be cold. Wait for a server that is starting."""
        server = self._find_or_start_server()
        if server is None and (start_thread := self._start_thread) is not None:
            start_thread.join(START_TIMEOUT_S)
            server = self._find_or_start_server()
        return server

    def _find_or_start_server(self) -> ServerProcess | None:
        """Return the current server if it works. Otherwise start a new server in the background and return None."""
        with self._lock:
            server = None if self._is_disabled else self._server
            reason = self._why_unusable(server) if server else ""
            if server is None or reason:
                self._server = None
                self._start_server_in_thread()
            else:
                server.run_count += 1
                if server.should_be_replaced():
                    self._earliest_start_at = 0.0  # a replacement needs no backoff
                    self._start_server_in_thread()
        if reason and server is not None:
            self._log_reason_once(reason)
            server.end()
            return None
        return server

    def _why_unusable(self, server: ServerProcess) -> str:
        """Return why the server cannot execute runs; '' if it can."""
        if server.process.poll() is not None:
            return f"the playbook server ended with exit code {server.process.returncode}"
        if refusal := server.read_reason_of_refused_run():
            return refusal  # this server would refuse each later run for the same reason
        now = time.monotonic()
        if now - self._probed_at < PROBE_INTERVAL_S:
            return ""
        self._probed_at = now
        is_answering = protocol.is_answering(str(server.socket_path), PROBE_TIMEOUT_S)
        return "" if is_answering else "the playbook server does not answer"

    # --- starting a server ------------------------------------------------------------------------------------------

    def _start_server_in_thread(self) -> None:
        """Start a new server in a thread, unless a server is starting or the backoff has not passed.

        The caller holds the lock.
        """
        now = time.monotonic()
        is_starting = self._start_thread is not None and self._start_thread.is_alive()
        if self._is_disabled or is_starting or now < self._earliest_start_at:
            return
        self._earliest_start_at = now + RESTART_BACKOFF_S
        self._start_count += 1
        thread = threading.Thread(target=self._start_server, args=(self._start_count,), name="warm-start", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the limit of threads, or of memory, is reached: runs are cold
            self._log_reason_once(str(error))
        else:
            self._start_thread = thread

    def _start_server(self, start_number: int) -> None:
        """Start a server, use it for new runs, and end the server that was used before."""
        try:
            server = ServerProcess(self._folder, start_number, self._make_environment(), self._cwd)
            with self._lock:
                self._starting_server = server
                if self._is_disabled:
                    server.kill()
            server.wait_until_ready()
        except Exception as error:  # every error is only logged, because runs are cold without a server
            if not self._is_disabled:
                self._log_reason_once(str(error) or type(error).__name__)
            return
        finally:
            with self._lock:
                self._starting_server = None
        with self._lock:
            self._probed_at = time.monotonic()
            server_to_end = server if self._is_disabled else self._server
            if not self._is_disabled:
                self._server = server
        if server_to_end is not None:
            server_to_end.end()
        if server_to_end is not server:
            log.info("warm_server_started", pid=server.process.pid)
