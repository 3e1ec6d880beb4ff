"""The agent's side of warm runs: starts both servers, looks after them, and gives a run's command its warm form.

Whatever is not as it should be makes runs cold, is logged once as `warm_unavailable`, and is tried again later.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from executor.log import get_logger
from executor.processes import process_tree
from executor.runs.warm import forkserver
from executor.runs.warm.compatibility import why_untested

log = get_logger(__name__)

#: Imports take a second of CPU; on a machine that is busy, more.
START_S = 30.0
#: A run waits no longer for the first start, and goes the ordinary way.
PATIENCE_S = 10.0
#: A server is asked whether it still forks when nobody has asked for so long.
ASK_EVERY_S = 10.0
ANSWER_S = 2.0
#: After so many runs, or so much growth of its own memory, a server is replaced: nothing is ever let to pile up.
RUNS_OF_A_LIFE = 2000
GROWTH_MIB = 64.0
#: Pause before a server that ended, or did not start, is started again.
PAUSE_S = 30.0
#: How a server's log tells that it has refused a run.
REFUSED = forkserver.REFUSED_LINE
CLIENT = Path(__file__).with_name("client.py")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class WarmServers:
    """Both servers. `folder` is ours alone; `environment` describes that of a run, with `folder` for the run's own."""

    def __init__(self, folder: Path, cwd: Path, environment: Callable[[], Mapping[str, str]]) -> None:
        self._folder = folder
        self._cwd = cwd
        self._environment = environment
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []  #: the last one serves
        self._began = 0
        self._asked_at = 0.0
        self._start_after = 0.0
        self._starting: threading.Thread | None = None
        self._said: set[str] = set()
        self._closed = False

    def start(self) -> None:
        """Start both in the background."""
        if reason := why_untested():
            self.say_unavailable(reason)
            self._closed = True
            return
        with self._lock:
            self._begin_start()

    def command(self, command: list[str], path: str) -> list[str]:
        """Return the warm form of a run's command, or the command under its keeper. `path` is the run's PATH."""
        program = shutil.which(command[0], path=path)
        pair = self._pair() if program else None
        if pair is None or program is None:
            return [*process_tree.keeper_command(), *command]
        sockets = [str(pair.playbooks.socket), str(pair.modules.socket)]
        return [sys.executable, "-I", "-S", str(CLIENT), *sockets, process_tree.SCRIPT, program, *command[1:]]

    def pids(self) -> list[int]:
        """Return the process ids of the servers that serve now, playbooks' first."""
        with self._lock:
            return [server.process.pid for pair in self._pairs[-1:] for server in pair.servers]

    def close(self) -> None:
        """End both. Runs that are under way go on."""
        self._closed = True
        if (thread := self._starting) is not None:
            thread.join(START_S)
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.end()

    def say_unavailable(self, reason: str) -> None:
        """Log why runs are cold; each reason once."""
        if reason not in self._said:
            self._said.add(reason)
            log.warning("warm_unavailable", reason=reason)

    # --- choosing ---------------------------------------------------------------------------------------------------

    def _pair(self) -> _Pair | None:
        """Return servers that answer, waiting for a first start; None: this run is cold."""
        thread = self._starting
        if not self._pairs and thread is not None:
            thread.join(PATIENCE_S)
        with self._lock:
            pair = self._pairs[-1] if self._pairs and not self._closed else None
            reason = self._why_unfit(pair) if pair else ""
            if pair is None or reason:
                self._pairs = []
                self._begin_start()
            else:
                pair.runs += 1
                if pair.is_worn():
                    self._start_after = 0.0
                    self._begin_start()
        if reason and pair is not None:
            self.say_unavailable(reason)
            pair.end()
            return None
        return pair

    def _why_unfit(self, pair: _Pair) -> str:
        for server in pair.servers:
            if server.process.poll() is not None:
                return f"the {server.name} server ended with {server.process.returncode}"
            if refusal := server.read_refusal():
                self.say_unavailable(refusal)
                if server is pair.playbooks:  # it would refuse the next run as well
                    return refusal
        now = time.monotonic()
        if now - self._asked_at < ASK_EVERY_S:
            return ""
        self._asked_at = now
        silent = (server.name for server in pair.servers if not forkserver.is_answering(str(server.socket), ANSWER_S))
        return next((f"the {name} server does not answer" for name in silent), "")

    # --- starting ---------------------------------------------------------------------------------------------------

    def _begin_start(self) -> None:
        """Start a new pair in a thread, unless one is on its way or the pause is not over. Call with the lock held."""
        now = time.monotonic()
        if self._closed or now < self._start_after or (self._starting is not None and self._starting.is_alive()):
            return
        self._start_after = now + PAUSE_S
        self._began += 1
        self._starting = threading.Thread(target=self._start_pair, args=(self._began,), name="warm-start", daemon=True)
        self._starting.start()

    def _start_pair(self, number: int) -> None:
        try:
            pair = _Pair(self._folder, number, self._environment(), self._cwd)
        except Exception as error:  # whatever it is, runs can be cold
            self.say_unavailable(str(error) or type(error).__name__)
            return
        with self._lock:
            self._asked_at = time.monotonic()
            retired, self._pairs = self._pairs, [pair]
        for old in retired:
            old.end()
        log.info("warm_servers_started", pids=[server.process.pid for server in pair.servers])


class _Pair:
    """A playbook server and a module server that serve together."""

    def __init__(self, folder: Path, number: int, env: Mapping[str, str], cwd: Path) -> None:
        """Start both and wait. Raises OSError."""
        self.runs = 0
        self.playbooks = _Server("playbook", folder / f"playbook-{number}", env, cwd)
        self.modules = _Server("module", folder / f"module-{number}", env, cwd)
        self.servers = (self.playbooks, self.modules)
        try:
            for server in self.servers:
                server.wait_until_ready()
        except BaseException:
            self.end()
            raise

    def is_worn(self) -> bool:
        """True when it has lived long enough."""
        return self.runs >= RUNS_OF_A_LIFE or any(server.growth_mib() > GROWTH_MIB for server in self.servers)

    def end(self) -> None:
        """End both. Their runs have guards of their own, and go on."""
        for server in self.servers:
            server.end()


class _Server:
    """One server process. Its standard input is its lifeline: it ends when the agent does, however that comes."""

    def __init__(self, name: str, file: Path, env: Mapping[str, str], cwd: Path) -> None:
        """Start it; `file` without its suffix is its socket's and its log's."""
        self.name = name
        self.socket = file.with_suffix(".sock")
        self.socket.unlink(missing_ok=True)
        self._errors = file.with_suffix(".log")
        self._read_to = 0
        self._at_start_mib = 0.0
        room = {forkserver.ROOM_VARIABLE: "." * forkserver.ROOM_BYTES}
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"executor.runs.warm.{name}_server", str(self.socket), str(file.parent)],
                env={**env, **room},
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait for its word. Raises OSError with its last words."""
        timer = threading.Timer(START_S, self.process.kill)
        timer.start()
        with self._pipe(self.process.stdout) as output:
            said = output.readline()
        timer.cancel()
        if said != forkserver.READY:
            self.process.wait()
            lines = self._errors.read_text(errors="replace").strip().splitlines() or ["it did not start in time"]
            raise OSError(f"the {self.name} server did not start: {lines[-1][:300]}")
        self._at_start_mib = self._mib()

    def read_refusal(self) -> str:
        """Return why it has refused a run since the last call, or nothing."""
        with contextlib.suppress(OSError), self._errors.open("rb") as log_file:
            log_file.seek(self._read_to)
            new = log_file.read()
            self._read_to += len(new)
            lines = [line for line in new.decode(errors="replace").splitlines() if line.startswith(REFUSED)]
            return lines[-1].removeprefix(REFUSED) if lines else ""
        return ""

    def growth_mib(self) -> float:
        """How much more memory it has than at its start."""
        return self._mib() - self._at_start_mib

    def end(self) -> None:
        """End it, wait, and leave no file of it; what it said has been read."""
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for file in (self.socket, self._errors):
            file.unlink(missing_ok=True)

    def _mib(self) -> float:
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1]
        except OSError:
            return 0.0
        return int(pages) * PAGE_BYTES / 1024 / 1024

    def _pipe(self, stream: IO[bytes] | None) -> IO[bytes]:
        if stream is None:
            raise OSError(f"the {self.name} server has no output")
        return stream
