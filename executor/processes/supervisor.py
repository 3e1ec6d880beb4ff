"""Starts the agent, starts it again when it asks for that or dies, and leaves none of its processes behind.

The parent of everything, PID 1 in the container: small, one thread, standard library only, no state of its own. It is
a child subreaper, so that whatever loses its parent comes here. Signal handlers write a byte; one loop decides:

    started ──exit 10 (a limit was reached)──▶ strays ended ──at once───▶ started
       ├──────any other death, or silence────▶ strays ended ──back-off──▶ started
       └──────exit 0, 2, 3, 6, or a stop─────▶ strays ended ────────────▶ its exit code is ours
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from executor.errors import EXIT_DATABASE, EXIT_FAILURE, EXIT_OK, EXIT_RESTART, EXIT_SETTINGS, EXIT_USAGE
from executor.processes import process_tree, progress
from executor.processes import sd_notify as notify

#: Another start would end the same way: a person must act.
FINAL_CODES = frozenset({EXIT_OK, EXIT_USAGE, EXIT_SETTINGS, EXIT_DATABASE})
#: Pause before the first start after a death, doubled for each further one. R5: claiming again within 10 s.
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
#: The same for agents that had begun to work before they died: their start is not what is wrong, and R5 holds for the
#: tenth kill in a row as for the first.
LONGEST_PAUSE_AFTER_WORK_S = 4.0
#: An agent that lived this long has started well, and the next pause is the first one again.
GOOD_LIFE_S = 60.0
#: An agent that wants a restart sooner than this would want the next one as soon: it waits like one that died.
SHORT_LIFE_S = 2.0
#: Given to strays between TERM and KILL; in that time the keepers of its runs end what they keep.
STRAY_GRACE_S = 2.0
#: Given to the agent after QUIT.
QUIT_GRACE_S = 8.0
#: Given to a stalled agent to write down where it stands.
DUMP_S = 1.0
#: The loop's pace when nothing happens.
TICK_S = 1.0
#: The service manager's watchdog is fed while the agent moves; one silent for this long is left to its patience.
FEEDING_SILENCE_S = 30.0


class EventLog(Protocol):
    """Takes one event."""

    def __call__(self, event: str, *, level: str = "info", **facts: Any) -> None:
        """Log an event, named in the past tense, with its facts."""


def log_line(event: str, *, level: str = "info", **facts: Any) -> None:
    """Write one line in the shape of the agent's own log, without its libraries."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    line = {"timestamp": now, "level": level, "event": event, "logger": "executor.processes.supervisor", **facts}
    with contextlib.suppress(OSError, ValueError):  # a closed stdout is no reason to leave the agent alone
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
    """Keep an agent running until it ends for good or we are told to stop; return the exit code.

    The first TERM (or INT: Ctrl-C) lets the agent drain, the second lets it cancel, QUIT lets it end at once; past
    `stop_timeout_s` it is killed. An agent that has not said that it moves (`progress`) for `stall_timeout_s` is asked
    for a dump (USR1), killed and started again; 0 turns that off. HUP and USR1 are passed on.
    """
    os.umask(0o077)
    process_tree.set_undumpable()
    process_tree.become_subreaper()
    given = os.environ if env is None else env
    env = {name: value for name, value in given.items() if name not in notify.VARIABLES}
    return Supervisor(list(command), env, stop_timeout_s, stall_timeout_s, log).run()


class Pause:
    """How long to wait before the next start."""

    def __init__(self) -> None:
        self._next_s = FIRST_PAUSE_S

    def after(self, lived_s: float, *, wanted: bool, had_begun: bool = False) -> float:
        """Return the pause after a life of `lived_s`; `wanted`: the agent asked for the restart."""
        if lived_s >= GOOD_LIFE_S:
            self._next_s = FIRST_PAUSE_S
        if wanted and lived_s >= SHORT_LIFE_S:
            return 0.0
        longest_s = LONGEST_PAUSE_AFTER_WORK_S if had_begun else LONGEST_PAUSE_S
        pause_s = min(self._next_s, longest_s)
        self._next_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return pause_s


class Supervisor:
    """The loop. It ends with the agent's exit code or its own."""

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
        self._agent: _Agent | None = None
        self._had_begun = False  #: the last agent's start was over when it ended
        self._stop_at: float | None = None  #: when the agent is killed; None: nobody told us to stop

    def run(self) -> int:
        """Live through one agent after another."""
        pause = Pause()
        while True:
            started = time.monotonic()
            code = self._live()
            lived_s = time.monotonic() - started
            self._end_strays()
            self._turn(0)  # a stop may have come meanwhile
            if self._stop_at is not None:
                return _code_of_stop(code)
            if code in FINAL_CODES:
                return code
            pause_s = pause.after(lived_s, wanted=code == EXIT_RESTART, had_begun=self._had_begun)
            self._log("agent_restarting", pause_s=pause_s)
            self._notifier.status(f"the agent left with code {code} and starts again in {pause_s:g} s")
            if self._is_stopped_within(pause_s):
                return EXIT_OK

    def _live(self) -> int:
        """Start an agent and return how it ended: an exit code, or -n for signal n."""
        self._had_begun = False
        try:
            return self._follow()
        except OSError as error:  # no process to be had just now: as if it had died at once
            self._log("agent_start_failed", level="error", reason=str(error))
            return EXIT_FAILURE

    def _follow(self) -> int:
        with _started(self._command, self._env, progress.Listener(self._notifier)) as agent:
            self._agent = agent
            self._log("agent_started", pid=agent.pid)
            while agent.status is None:
                self._turn(TICK_S)
                self._watch(agent)
            self._agent = None
            self._had_begun = agent.has_begun
        code = os.waitstatus_to_exitcode(agent.status)
        level = "info" if code in (EXIT_OK, EXIT_RESTART) else "error"
        self._log("agent_exited", level=level, pid=agent.pid, exit_code=code)
        return code

    def _turn(self, within_s: float) -> None:
        """Wait for something to happen, and take it in: signs of life, signals, the ends of children."""
        agent = self._agent
        poll = select.poll()
        poll.register(self._wakeups.reader, select.POLLIN)
        if agent and not agent.is_mute:
            poll.register(agent.progress, select.POLLIN)
        poll.poll(within_s * 1000)
        if agent:
            agent.listen()
        if agent is None or agent.silence_s < FEEDING_SILENCE_S:
            self._notifier.ping()
        for signum in self._wakeups.read():
            self._take(signum)
        for pid, status in process_tree.reap().items():
            if agent and pid == agent.pid:
                agent.status = status

    def _take(self, signum: int) -> None:
        """Act on a signal. The agent sees INT as TERM, so that each of them counts as one step of the same stop."""
        now = time.monotonic()
        if signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._notifier.stopping()
        if signum in (signal.SIGTERM, signal.SIGINT):
            if self._stop_at is None:
                self._stop_at = now + self._stop_timeout_s
            self._pass_on(signal.SIGTERM)
        elif signum == signal.SIGQUIT:
            self._stop_at = now + QUIT_GRACE_S
            self._pass_on(signum)
        elif signum != signal.SIGCHLD:
            self._pass_on(signum)

    def _pass_on(self, signum: int) -> None:
        if self._agent:
            self._log("signal_forwarded", signal=signal.Signals(signum).name)
            process_tree.send(self._agent.pid, signum)

    def _watch(self, agent: _Agent) -> None:
        """Kill an agent that does not stop in time, or that does not move. One that stops need not move."""
        if agent.status is not None or agent.is_killed:
            return
        if self._stop_at is not None:
            if time.monotonic() >= self._stop_at:
                self._log("agent_not_stopped_in_time", level="error", pid=agent.pid)
                agent.kill()
        elif 0 < self._stall_timeout_s < agent.silence_s:
            self._log("agent_stalled", level="error", pid=agent.pid, silence_s=round(agent.silence_s, 1))
            self._pass_on(signal.SIGUSR1)
            time.sleep(DUMP_S)
            agent.kill()

    def _end_strays(self) -> None:
        """End what the agent has left: nothing may go on changing VMs that no agent knows of."""
        met = process_tree.end(_strays, grace_s=STRAY_GRACE_S)
        if met:
            self._log("orphan_processes_killed", level="warning", pids=sorted(met), left=sorted(_strays()))

    def _is_stopped_within(self, pause_s: float) -> bool:
        until = time.monotonic() + pause_s
        while self._stop_at is None and (left_s := until - time.monotonic()) > 0:
            self._turn(min(left_s, TICK_S))
        return self._stop_at is not None


class _Agent:
    """The agent's process as we see it."""

    def __init__(self, pid: int, progress_reader: int, listener: progress.Listener) -> None:
        self.pid = pid
        self.progress = progress_reader
        self._listener = listener
        self.status: int | None = None  #: its wait status, once it has ended
        self.is_mute = False  #: it has closed its end of the pipe
        self.is_killed = False
        self.silence_s = 0.0
        self._looked_at = time.monotonic()

    @property
    def has_begun(self) -> bool:
        """True when it has said that its start is over."""
        return self._listener.has_begun

    def listen(self) -> None:
        """Take in its signs of life.

        Silence is summed over turns, each for no more than two ticks: after both of us were stopped for an hour
        (SIGSTOP, a paused VM) it must not look like an hour of silence.
        """
        now = time.monotonic()
        self.silence_s += min(now - self._looked_at, 2 * TICK_S)
        self._looked_at = now
        with contextlib.suppress(BlockingIOError):
            if said := os.read(self.progress, 65536):
                self.silence_s = 0.0
                self._listener.take(said)
            else:
                self.is_mute = True

    def kill(self) -> None:
        """End it now."""
        self.is_killed = True
        process_tree.send(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def _started(command: list[str], env: dict[str, str], listener: progress.Listener) -> Iterator[_Agent]:
    """Start an agent that dies with us.

    With SIGKILL, not TERM: without a supervisor nobody passes signals on, and the next supervisor starts an agent on
    the same database, while this one would go on for the whole drain time. Its runs end too: their keepers hang on it.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.set_inheritable(writer, True)
        tied = [*process_tree.tied_command(os.getpid()), *command]
        pid = process_tree.spawn(tied, {**env, progress.VARIABLE: str(writer)})
    finally:
        os.close(writer)
    try:
        yield _Agent(pid, reader, listener)
    finally:
        os.close(reader)


def _strays() -> set[int]:
    return process_tree.descendants(os.getpid())


def _code_of_stop(code: int) -> int:
    """The exit code after a stop. An agent that TERM met before it could handle it has stopped, too."""
    if code in (EXIT_RESTART, -signal.SIGTERM, -signal.SIGQUIT):
        return EXIT_OK
    return code if code >= 0 else EXIT_FAILURE
