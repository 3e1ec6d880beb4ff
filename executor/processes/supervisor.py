"""Starts the agent, restarts it when it requests a restart or dies, and kills orphan processes.

The supervisor is the root of the process tree, PID 1 in the container. It has one thread and no stored state, and uses
the standard library only. It is a child subreaper, so every orphaned descendant becomes its child. Signal handlers
write a byte to a pipe, and one loop reads the pipe and decides:

    started ──exit 10 (a limit was reached)──▶ orphans killed ──at once──▶ started
       ├──────any other death, or a stall────▶ orphans killed ──backoff──▶ started
       └──────exit 0, 2, 3, 6, or a stop─────▶ orphans killed ───────────▶ exit with the agent's code
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from executor.errors import EXIT_DATABASE, EXIT_FAILURE, EXIT_OK, EXIT_RESTART, EXIT_SETTINGS, EXIT_USAGE
from executor.processes import process_tree, progress
from executor.processes import sd_notify as notify
from executor.processes.agent_process import AgentProcess, started_agent

#: After these exit codes there is no restart: the agent is done, or an operator must act first.
FINAL_CODES = frozenset({EXIT_OK, EXIT_USAGE, EXIT_SETTINGS, EXIT_DATABASE})
#: Backoff before the first restart after a death; each further death doubles it. Promise R5
#: (docs/promises.md): after a kill of the agent, jobs are claimed again within 10 s.
MIN_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
#: Maximum backoff for an agent that was ready before it died. Its start works, and promise R5 holds even after the
#: tenth kill in a row.
MAX_BACKOFF_AFTER_READY_S = 4.0
#: When the agent has run for this long, the backoff starts again at its minimum.
STABLE_RUNTIME_S = 60.0
#: An agent that requests a restart sooner than this would probably do so again, so there is a backoff as after a death.
MIN_RUNTIME_S = 2.0
#: Time between TERM and KILL for orphan processes. The guards of runs need this time to end their runs.
ORPHAN_GRACE_S = 2.0
#: The agent is killed this long after QUIT.
QUIT_GRACE_S = 8.0
#: How long a stalled agent may write the stacks of its threads before it is killed.
DUMP_S = 1.0
#: Maximum wait of the loop for an event.
TICK_S = 1.0
#: The service manager's watchdog gets no more pings once the agent has made no progress for this long.
MAX_SILENCE_S = 30.0


class EventLog(Protocol):
    """Logs one event."""

    def __call__(self, event: str, *, level: str = "info", **facts: Any) -> None:
        """Log an event, named in the past tense, with its facts."""


def log_line(event: str, *, level: str = "info", **facts: Any) -> None:
    """Write one line in the format of the agent's log, without the agent's logging library."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    line = {"timestamp": now, "level": level, "event": event, "logger": "executor.processes.supervisor", **facts}
    with contextlib.suppress(OSError, ValueError):  # a closed stdout must not end the supervisor
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def supervise(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stop_timeout_s: float,
    stall_timeout_s: float = 120,
    log: EventLog = log_line,
) -> int:
    """Keep an agent running until it exits with a final code or a stop signal is received; return the exit code.

    The first TERM (or INT: Ctrl-C) makes the agent drain, the second one makes it cancel its jobs, and QUIT makes it
    exit at once. An agent that is still running `stop_timeout_s` after the first signal is killed. An agent that has
    reported no progress for `stall_timeout_s` writes the stacks of its threads (USR1), is killed and restarted. With 0,
    the supervisor does not check the progress. HUP and USR1 are forwarded.
    """
    os.umask(0o077)
    process_tree.set_undumpable()
    process_tree.become_subreaper()
    full_env = os.environ if env is None else env
    env = {name: value for name, value in full_env.items() if name not in notify.VARIABLES}
    return Supervisor(list(command), env, stop_timeout_s, stall_timeout_s, log).run()


class Backoff:
    """Computes the wait before the next start of the agent."""

    def __init__(self) -> None:
        self._next_s = MIN_BACKOFF_S

    def after(self, runtime_s: float, *, requested: bool, was_ready: bool = False) -> float:
        """Return the backoff after the agent has run for `runtime_s`; `requested`: it asked for the restart."""
        if runtime_s >= STABLE_RUNTIME_S:
            self._next_s = MIN_BACKOFF_S
        if requested and runtime_s >= MIN_RUNTIME_S:
            return 0.0
        backoff_s = min(self._next_s, MAX_BACKOFF_AFTER_READY_S if was_ready else MAX_BACKOFF_S)
        self._next_s = min(2 * backoff_s, MAX_BACKOFF_S)
        return backoff_s


class Supervisor:
    """Runs one agent after another, and handles signals and ended processes in one loop."""

    def __init__(
        self, command: list[str], env: dict[str, str], stop_timeout_s: float, stall_timeout_s: float, log: EventLog
    ) -> None:
        self._command = command
        self._env = env
        self._stop_timeout_s = stop_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._log = log
        self._wakeups = process_tree.Wakeups(
            [signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1]
        )
        self._notifier = notify.notifier()
        self._agent: AgentProcess | None = None
        self._was_ready = False  #: the last agent was ready before it ended
        self._kill_at: float | None = None  #: monotonic; when a stopping agent is killed; None before a stop signal

    def run(self) -> int:
        """Run one agent after another; return the exit code."""
        backoff = Backoff()
        while True:
            started = time.monotonic()
            code = self._run_one_agent()
            runtime_s = time.monotonic() - started
            self._end_orphans()
            self._handle_events(0)  # a stop signal may have been received meanwhile
            if self._kill_at is not None:
                return _exit_code_after_stop(code)
            if code in FINAL_CODES:
                return code
            backoff_s = backoff.after(runtime_s, requested=code == EXIT_RESTART, was_ready=self._was_ready)
            self._log("agent_restarting", backoff_s=backoff_s)
            self._notifier.status(f"the agent exited with code {code} and restarts in {backoff_s:g} s")
            if self._wait_for_stop_signal(backoff_s):
                return EXIT_OK

    def _run_one_agent(self) -> int:
        """Start an agent and return how it ended: an exit code, or -n for signal n."""
        self._was_ready = False
        try:
            return self._run_agent_process()
        except OSError as error:  # no process was started: the backoff is that after a death
            self._log("agent_start_failed", level="error", reason=str(error))
            return EXIT_FAILURE

    def _run_agent_process(self) -> int:
        """Start an agent process and handle events until it has ended. Raises OSError when it cannot be started."""
        with started_agent(self._command, self._env, progress.Listener(self._notifier)) as agent:
            self._agent = agent
            self._log("agent_started", pid=agent.pid)
            while agent.status is None:
                self._handle_events(TICK_S)
                self._kill_if_late(agent)
            self._agent = None
            self._was_ready = agent.is_ready
        code = os.waitstatus_to_exitcode(agent.status)
        level = "info" if code in (EXIT_OK, EXIT_RESTART) else "error"
        self._log("agent_exited", level=level, pid=agent.pid, exit_code=code)
        return code

    def _handle_events(self, wait_s: float) -> None:
        """Wait for an event, then handle all progress messages, signals and ended child processes."""
        agent = self._agent
        poll = select.poll()
        poll.register(self._wakeups.reader, select.POLLIN)
        if agent and not agent.is_pipe_closed:
            poll.register(agent.progress, select.POLLIN)
        poll.poll(wait_s * 1000)
        if agent:
            agent.read_progress(TICK_S)
        if agent is None or agent.silence_s < MAX_SILENCE_S:
            self._notifier.ping()
        for signum in self._wakeups.read():
            self._handle_signal(signum)
        for pid, status in process_tree.reap().items():
            if agent and pid == agent.pid:
                agent.status = status

    def _handle_signal(self, signum: int) -> None:
        """Act on a signal. INT is forwarded as TERM, so that the agent counts both as stop signals."""
        now = time.monotonic()
        if signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._notifier.stopping()
        if signum in (signal.SIGTERM, signal.SIGINT):
            if self._kill_at is None:
                self._kill_at = now + self._stop_timeout_s
            self._forward(signal.SIGTERM)
        elif signum == signal.SIGQUIT:
            self._kill_at = now + QUIT_GRACE_S
            self._forward(signum)
        elif signum != signal.SIGCHLD:
            self._forward(signum)

    def _forward(self, signum: int) -> None:
        if self._agent:
            self._log("signal_forwarded", signal=signal.Signals(signum).name)
            process_tree.send(self._agent.pid, signum)

    def _kill_if_late(self, agent: AgentProcess) -> None:
        """Kill an agent that does not stop in time, or that reports no progress while it is not stopping."""
        if agent.status is not None or agent.is_killed:
            return
        if self._kill_at is not None:
            if time.monotonic() >= self._kill_at:
                self._log("agent_not_stopped_in_time", level="error", pid=agent.pid)
                agent.kill()
        elif 0 < self._stall_timeout_s < agent.silence_s:
            self._log("agent_stalled", level="error", pid=agent.pid, silence_s=round(agent.silence_s, 1))
            self._forward(signal.SIGUSR1)
            time.sleep(DUMP_S)
            agent.kill()

    def _end_orphans(self) -> None:
        """End the processes that the agent has left: they must not change VMs after the next agent has started."""
        killed = process_tree.end_processes(_orphans, grace_s=ORPHAN_GRACE_S)
        if killed:
            self._log("orphan_processes_killed", level="warning", pids=sorted(killed), left=sorted(_orphans()))

    def _wait_for_stop_signal(self, wait_s: float) -> bool:
        """Handle events for `wait_s`, or until a stop signal is received. Return whether one was received."""
        deadline = time.monotonic() + wait_s
        while self._kill_at is None and (left_s := deadline - time.monotonic()) > 0:
            self._handle_events(min(left_s, TICK_S))
        return self._kill_at is not None


def _orphans() -> set[int]:
    return process_tree.descendants(os.getpid())


def _exit_code_after_stop(code: int) -> int:
    """Return the supervisor's exit code after a stop; `code` is the agent's.

    An agent without a signal handler yet is killed by TERM or QUIT: that is a normal stop.
    """
    if code in (EXIT_RESTART, -signal.SIGTERM, -signal.SIGQUIT):
        return EXIT_OK
    return code if code >= 0 else EXIT_FAILURE
