"""Starts the agent, restarts it when it requests a restart or dies, and kills the processes that an ended agent left.

The supervisor is the root of the process tree: PID 1 in the container. It has one thread and no stored state, and uses
the standard library only. It is a child subreaper: a descendant whose parent has ended becomes the supervisor's child.
Each signal is written as a byte to a pipe. One loop reads the pipe, and starts and ends agents in these steps:

    started ──exit 10 (a restart is requested)───────▶ orphans killed ──at once──▶ started
       ├──────a final exit code, or a stop signal────▶ orphans killed ───────────▶ the supervisor exits
       └──────any other end of the agent (a death)───▶ orphans killed ──backoff──▶ started

An agent requests a restart when it has reached its limit of jobs, memory or runtime. The final exit codes are
FINAL_EXIT_CODES. The orphans are the processes that the ended agent has started and that still run. The supervisor also
kills an agent that has stalled: the agent has reported no progress for `stall_timeout_s`.
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
from executor.processes import process_tree, progress, sd_notify
from executor.processes.agent_process import AgentProcess, start_agent

#: The exit codes of the agent after which the supervisor exits. The agent was stopped or has finished (with
#: `smith run --once`), or an operator must act.
FINAL_EXIT_CODES = frozenset({EXIT_OK, EXIT_USAGE, EXIT_SETTINGS, EXIT_DATABASE})
#: Backoff before the first restart after a death. Each further death doubles the backoff. The value keeps promise R5
#: (docs/promises.md): after a kill of the agent, jobs are claimed again within 10 s.
MIN_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
#: Maximum backoff after the death of an agent that was ready, which means that it had sent READY=1, see sd_notify(3).
#: Such an agent can start, so a short backoff is enough.
#: With this backoff, promise R5 holds even after ten kills in a row.
MAX_BACKOFF_AFTER_READY_S = 4.0
#: Runtime of an agent after which the backoff starts again at its minimum.
STABLE_RUNTIME_S = 60.0
#: Minimum runtime of an agent that is restarted without a backoff when it requests a restart. After a shorter runtime,
#: the next agent would probably request a restart, too.
MIN_RUNTIME_FOR_RESTART_AT_ONCE_S = 2.0
#: Time between TERM and KILL for orphan processes. Each playbook run has a parent process, its guard. After TERM, the
#: guard needs this time to end the run.
ORPHAN_GRACE_S = 2.0
#: Maximum time from QUIT to the end of the agent. An agent that still runs then is killed.
KILL_AFTER_QUIT_S = 8.0
#: Time that a stalled agent gets to write the stacks of its threads. Then it is killed.
STACK_DUMP_S = 1.0
MS_PER_S = 1000
#: Maximum wait of the loop for an event.
LOOP_INTERVAL_S = 1.0
#: Time without progress of the agent after which the supervisor stops the pings to the service manager's watchdog.
MAX_NO_PROGRESS_FOR_PINGS_S = 30.0


class EventLogger(Protocol):
    """The type of the function that logs one event."""

    def __call__(self, event: str, *, level: str = "info", **values: Any) -> None:
        """Log an event, named in the past tense, with values that describe it."""


def log_event(event: str, *, level: str = "info", **values: Any) -> None:
    """Write one line in the format of the agent's log, without the agent's logging library."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    line = {"timestamp": now, "level": level, "event": event, "logger": "executor.processes.supervisor", **values}
    with contextlib.suppress(OSError, ValueError):  # a closed stdout must not end the supervisor
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def supervise(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stop_timeout_s: float,
    stall_timeout_s: float = 120,
    log: EventLogger = log_event,
) -> int:
    """Keep an agent running until it exits with one of FINAL_EXIT_CODES or a stop signal is received.

    Returns the exit code of the supervisor.

    The first TERM (or INT: Ctrl-C) makes the agent drain: it claims no more jobs and waits for its running jobs. The
    second TERM or INT makes it stop its running jobs and requeue them. QUIT makes it do this without a drain. An agent
    that is still running is killed `stop_timeout_s` after the first TERM or INT, or KILL_AFTER_QUIT_S after QUIT. HUP
    and USR1 are forwarded to the agent. On HUP, the agent reads its secrets again.

    When an agent has reported no progress for `stall_timeout_s`, the supervisor sends it USR1, so that the agent
    writes the stacks of its threads. Then the supervisor kills the agent and starts another one. If `stall_timeout_s`
    is 0, the supervisor does not check the progress.
    """
    os.umask(0o077)  # new files are readable for this user only
    process_tree.forbid_dumps_and_debuggers()
    process_tree.become_subreaper()
    supervisor_env = os.environ if env is None else env
    # Only the supervisor sends messages to the service manager, so the agent does not get NOTIFY_SOCKET and the
    # variables of the watchdog.
    agent_env = {name: value for name, value in supervisor_env.items() if name not in sd_notify.NOTIFY_VARIABLES}
    return Supervisor(list(command), agent_env, stop_timeout_s, stall_timeout_s, log).run()


class Backoff:
    """Computes the backoff before each restart of the agent."""

    def __init__(self) -> None:
        self._next_s = MIN_BACKOFF_S

    def compute_backoff_s(self, runtime_s: float, *, is_restart_requested: bool, was_ready: bool = False) -> float:
        """Return the backoff before the next start of the agent, in seconds.

        After each backoff above 0, the next one is twice as long, up to a maximum. After a runtime of STABLE_RUNTIME_S,
        the backoff starts again at MIN_BACKOFF_S. After a requested restart, the backoff is 0, unless the runtime was
        shorter than MIN_RUNTIME_FOR_RESTART_AT_ONCE_S.

        `runtime_s` is the runtime of the ended agent, which has died or requested a restart. `was_ready` is True if the
        ended agent was ready.
        """
        if runtime_s >= STABLE_RUNTIME_S:
            self._next_s = MIN_BACKOFF_S
        if is_restart_requested and runtime_s >= MIN_RUNTIME_FOR_RESTART_AT_ONCE_S:
            return 0.0
        max_backoff_s = MAX_BACKOFF_AFTER_READY_S if was_ready else MAX_BACKOFF_S
        backoff_s = min(self._next_s, max_backoff_s)
        self._next_s = min(2 * backoff_s, MAX_BACKOFF_S)
        return backoff_s


class Supervisor:
    """Runs one agent after another, and handles signals and ended processes in one loop."""

    def __init__(
        self, command: list[str], env: dict[str, str], stop_timeout_s: float, stall_timeout_s: float, log: EventLogger
    ) -> None:
        self._command = command
        self._env = env
        self._stop_timeout_s = stop_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._log = log
        self._signal_pipe = process_tree.SignalPipe(
            [signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1]
        )
        self._notifier = sd_notify.notifier()
        self._agent: AgentProcess | None = None
        self._was_ready = False  #: True if the agent that ended last was ready
        #: Monotonic time at which an agent that still runs is killed; None before a stop signal was received.
        self._kill_at: float | None = None

    @property
    def _is_stopping(self) -> bool:
        """True after a stop signal (TERM, INT or QUIT) was received."""
        return self._kill_at is not None

    def run(self) -> int:
        """Run one agent after another; return the exit code of the supervisor."""
        backoff = Backoff()
        while True:
            started_at = time.monotonic()
            exit_code = self._run_one_agent()
            runtime_s = time.monotonic() - started_at
            self._end_orphans()
            self._handle_events(max_wait_s=0)  # a stop signal may have been received meanwhile
            if self._is_stopping:
                return _exit_code_after_stop(exit_code)
            if exit_code in FINAL_EXIT_CODES:
                return exit_code
            is_restart_requested = exit_code == EXIT_RESTART
            backoff_s = backoff.compute_backoff_s(
                runtime_s, is_restart_requested=is_restart_requested, was_ready=self._was_ready
            )
            self._log("agent_restarting", backoff_s=backoff_s)
            self._notifier.send_status(f"the agent {_describe_end(exit_code)} and restarts in {backoff_s:g} s")
            if self._wait_for_stop_signal(backoff_s):
                return EXIT_OK

    def _run_one_agent(self) -> int:
        """Start an agent and return how it ended: an exit code, or -n for signal n."""
        self._was_ready = False
        try:
            return self._run_agent_process()
        except OSError as error:  # no process was started, which counts as a death of the agent
            self._log("agent_start_failed", level="error", reason=str(error))
            return EXIT_FAILURE

    def _run_agent_process(self) -> int:
        """Start an agent process and handle events until it has ended. Raises OSError when it cannot be started."""
        # The parser forwards the agent's status text and the message READY=1 to the service manager.
        parser = progress.ProgressParser(self._notifier)
        with start_agent(self._command, self._env, parser) as agent:
            self._agent = agent
            self._log("agent_started", pid=agent.pid)
            while agent.wait_status is None:
                self._handle_events(LOOP_INTERVAL_S)
                self._kill_if_late_or_stalled(agent)
            self._agent = None
            self._was_ready = agent.is_ready
        exit_code = os.waitstatus_to_exitcode(agent.wait_status)
        level = "info" if exit_code in (EXIT_OK, EXIT_RESTART) else "error"
        self._log("agent_exited", level=level, pid=agent.pid, exit_code=exit_code)
        return exit_code

    def _handle_events(self, max_wait_s: float) -> None:
        """Wait for an event, then handle all progress messages, signals and ended child processes."""
        agent = self._agent
        poll = select.poll()
        poll.register(self._signal_pipe.read_fd, select.POLLIN)
        if agent and not agent.is_progress_pipe_closed:
            poll.register(agent.progress_fd, select.POLLIN)
        poll.poll(max_wait_s * MS_PER_S)
        if agent:
            # This call does not wait. It updates `no_progress_s`, the time without a progress message. If there is no
            # message, it adds the time since the previous call, but at most two loop intervals. So a suspension of the
            # machine does not count as a stall.
            agent.read_progress(loop_interval_s=LOOP_INTERVAL_S)
        if agent is None or agent.no_progress_s < MAX_NO_PROGRESS_FOR_PINGS_S:
            self._notifier.send_watchdog_ping()
        for signum in self._signal_pipe.read():
            self._handle_signal(signum)
        for pid, wait_status in process_tree.reap_children().items():
            if agent and pid == agent.pid:
                agent.wait_status = wait_status

    def _handle_signal(self, signum: int) -> None:
        """Record a stop signal, and forward every signal but CHLD to the agent. INT is forwarded as TERM."""
        now = time.monotonic()
        if signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._notifier.send_stopping()
        if signum in (signal.SIGTERM, signal.SIGINT):
            if self._kill_at is None:
                self._kill_at = now + self._stop_timeout_s
            self._forward_signal(signal.SIGTERM)
        elif signum == signal.SIGQUIT:
            self._kill_at = now + KILL_AFTER_QUIT_S
            self._forward_signal(signum)
        elif signum != signal.SIGCHLD:
            self._forward_signal(signum)

    def _forward_signal(self, signum: int) -> None:
        if self._agent:
            self._log("signal_forwarded", signal=signal.Signals(signum).name)
            process_tree.send_signal(self._agent.pid, signum)

    def _kill_if_late_or_stalled(self, agent: AgentProcess) -> None:
        """Kill an agent that is still running at `_kill_at`. Before a stop signal, kill an agent that has stalled."""
        if agent.wait_status is not None or agent.was_kill_sent:
            return
        if self._kill_at is not None:
            if time.monotonic() >= self._kill_at:
                self._log("agent_not_stopped_in_time", level="error", pid=agent.pid)
                agent.kill()
        elif 0 < self._stall_timeout_s < agent.no_progress_s:  # a timeout of 0 disables the check
            self._log("agent_stalled", level="error", pid=agent.pid, no_progress_s=round(agent.no_progress_s, 1))
            self._forward_signal(signal.SIGUSR1)
            time.sleep(STACK_DUMP_S)
            agent.kill()

    def _end_orphans(self) -> None:
        """End all descendants of the ended agent: they must not change VMs after the next agent has started."""
        ended_pids = process_tree.end_processes(_find_orphans, grace_s=ORPHAN_GRACE_S)
        if ended_pids:
            live_pids = sorted(_find_orphans())  # processes that have not ended after KILL
            self._log("orphan_processes_killed", level="warning", pids=sorted(ended_pids), live_pids=live_pids)

    def _wait_for_stop_signal(self, timeout_s: float) -> bool:
        """Handle events for `timeout_s`, or until a stop signal is received. Return whether one was received."""
        deadline = time.monotonic() + timeout_s
        while not self._is_stopping and (time_left_s := deadline - time.monotonic()) > 0:
            self._handle_events(min(time_left_s, LOOP_INTERVAL_S))
        return self._is_stopping


def _find_orphans() -> set[int]:
    """Return the descendants of the supervisor. Called when no agent runs, so all of them are orphan processes."""
    return process_tree.descendants_of_this_subreaper()


def _describe_end(exit_code: int) -> str:
    """Return how the agent ended. `exit_code` is -n when signal n has ended the agent."""
    return f"exited with code {exit_code}" if exit_code >= 0 else f"was ended by signal {-exit_code}"


def _exit_code_after_stop(agent_exit_code: int) -> int:
    """Return the supervisor's exit code after a stop signal. `agent_exit_code` is -n when signal n has ended the agent.

    TERM or QUIT ends an agent that has not yet set its signal handlers. This is a normal stop.
    """
    if agent_exit_code in (EXIT_RESTART, -signal.SIGTERM, -signal.SIGQUIT):
        return EXIT_OK
    return agent_exit_code if agent_exit_code >= 0 else EXIT_FAILURE
