"""Finds and ends all processes that a playbook run, or the agent, has started. Contains the guard of a run.

Killing a process group is not enough, because ansible-core's workers call setsid. If the group of ansible-playbook is
killed, a worker, its module and the module's children still run and change VMs. Three mechanisms find and end such
processes:

* Each run has a parent process, its guard. A cold run starts ansible-playbook anew, and its guard executes the
  function `guard`. For a warm run, a server that has already imported Ansible forks a guard, and the guard forks the
  run (`runs/warm/forkserver.py`). A guard is a child subreaper: a descendant whose parent ends becomes its
  child. So every process of the run stays a descendant of the guard. The guard ends all of them when the run has ended,
  when the guard receives TERM, when the agent has died, or when the agent has not renewed its leases in time.
* `processes_with_variable` finds processes by an environment variable that is set in every process of a run. So it also
  finds the processes of a run whose guard was killed.
* The supervisor (the parent process of the agent) is a subreaper, too, and ends the remaining processes when its agent
  dies.

The imports at the top of this file are of the standard library only, because the file is also run as a script, which
must start fast: without site-packages (`python -I -S`), the script starts in 15 ms.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # not imported at run time, because the script must start fast
    from collections.abc import Callable, Iterable, Mapping
    from typing import NoReturn

    from executor.shared.run_until import RunDeadline

#: The path of this file, which is also run as a script.
SCRIPT = os.path.abspath(__file__)
#: The folder that contains the package `executor`. The script adds it to `sys.path`, to import from the package.
_IMPORT_FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(SCRIPT)))
#: Time between TERM and KILL. It is short enough for promise R7 (docs/promises.md): 5 s after a run has ended, none of
#: its processes is alive.
GRACE_S = 3.0
#: Exit code of `guard` when it has ended the run, because it received TERM or the agent has died.
EXIT_ENDED_BY_GUARD = 254
#: Exit code of `guard` when it has ended the run, because the agent has not renewed its leases in time.
EXIT_LEASE_LOST = 253
#: Maximum wait for processes after SIGKILL. It is limited, because a process in uninterruptible sleep may not end.
_MAX_WAIT_AFTER_KILL_S = 5.0
#: Interval at which `end_processes` checks whether the processes have ended.
_END_CHECK_INTERVAL_S = 0.05
#: Interval at which a guard checks whether the deadline of its run has passed. At each renewal of its leases, the agent
#: writes a new deadline to a file. An environment variable of the run contains the path of the file.
_DEADLINE_CHECK_INTERVAL_S = 1.0
_MAX_SIGNALS_PER_READ = 4096
#: Signals that Python or this project ignores. In a child process, they get their default handling.
_SIGNALS_WITH_DEFAULT_HANDLING = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGUSR1]
_STDIN_FD = 0
_EXIT_COMMAND_NOT_STARTED = 127  #: the exit code of shells for a command that cannot be started
_SIGNAL_EXIT_CODE_BASE = 128  #: for a process that a signal has ended, shells add the signal's number to this
_OOM_SCORE_ADJUSTMENT = "500"  #: the default is 0; the kernel kills processes with a higher value first
#: Options of prctl(2).
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Make this process a child subreaper: its orphaned descendants become its children, not children of init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def forbid_dumps_and_debuggers() -> None:
    """Forbid core dumps and debuggers for this process, and let only root read its /proc/<pid>/environ.

    The process holds secrets, and its child processes (including playbooks that the provider wrote) run as the same
    user. Child processes inherit the core size limit of 0, so they cannot dump core. Debuggers are allowed for child
    processes after exec, because exec makes a process dumpable again.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def descendants(*root_pids: int) -> set[int]:
    """Return the ids of the live descendants of these processes, without the processes themselves."""
    return _descendants_of(root_pids, _parents_by_pid())


def descendants_of_this_subreaper() -> set[int]:
    """Reap the ended children of this process, and return its live descendants. This process must be a subreaper.

    A subreaper without a child has no descendants: an orphaned descendant would have become its child. So /proc is read
    only if there is a child, because reading /proc takes several milliseconds of CPU time.
    """
    reap_children()  # an ended child that is not reaped yet is still a child
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # this process has no children
        return set()
    return descendants(os.getpid())


def processes_with_variable(name: str, value_start: str) -> set[int]:
    """Return the ids of the processes with an environment variable `name` whose value starts with `value_start`.

    The result includes the descendants of these processes, but not the calling process. To find one exact value, append
    NUL to the value: NUL ends each value in /proc/<pid>/environ.
    """
    entry_start = f"\0{name}={value_start}".encode()  # NUL separates the entries of /proc/<pid>/environ
    parent_by_pid = _parents_by_pid()
    pids_with_variable = {
        pid for pid in parent_by_pid if entry_start in b"\0" + _read_proc_file(f"/proc/{pid}/environ")
    }
    return (pids_with_variable | _descendants_of(pids_with_variable, parent_by_pid)) - {os.getpid()}


def end_processes(find_pids: Callable[[], Iterable[int]], *, grace_s: float = GRACE_S) -> set[int]:
    """Send TERM to the processes that `find_pids` returns, and KILL after `grace_s`; return the ids of these processes.

    A process may start another one before it ends. So `find_pids` is called repeatedly, until it returns no process or
    _MAX_WAIT_AFTER_KILL_S have passed since the first KILL.
    """
    started_at = time.monotonic()
    signalled_pids: set[int] = set()
    while live_pids := set(find_pids()):
        waited_s = time.monotonic() - started_at
        if waited_s > grace_s + _MAX_WAIT_AFTER_KILL_S:
            break
        if waited_s >= grace_s:
            for pid in live_pids:
                send_signal(pid, signal.SIGKILL)
        else:
            for pid in live_pids - signalled_pids:  # each process gets TERM once
                send_signal(pid, signal.SIGTERM)
        signalled_pids |= live_pids
        time.sleep(_END_CHECK_INTERVAL_S)
    return signalled_pids


def send_signal(pid: int, signum: int) -> None:
    """Send a signal. Do nothing when the process has ended or belongs to another user."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)


def reap_children() -> dict[int, int]:
    """Reap every child process that has ended; return their wait statuses, with the process ids as keys."""
    wait_statuses: dict[int, int] = {}
    while True:
        try:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # this process has no children
            return wait_statuses
        if pid == 0:  # no other child has ended
            return wait_statuses
        wait_statuses[pid] = wait_status


class SignalPipe:
    """Writes each received signal as a byte to a pipe, so that a loop can poll it together with other descriptors."""

    def __init__(self, signals: Iterable[int]) -> None:
        self.read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)  # Python writes the byte
        for signum in signals:
            signal.signal(signum, lambda *_: None)  # without a handler, Python would write no byte

    def read(self) -> bytes:
        """Return the numbers of the signals received since the last call."""
        try:
            return os.read(self.read_fd, _MAX_SIGNALS_PER_READ)
        except BlockingIOError:  # no signal was received
            return b""


def guard(command: list[str]) -> int:
    """Run `command` until it ends or must end. Then end all processes of the command.

    The command must end when standard input closes, when TERM is received, or when the agent has not renewed its leases
    in time. Standard input is a pipe from the agent, so it closes even when the agent is killed. Returns the command's
    exit code (128 + n for signal n), EXIT_ENDED_BY_GUARD or EXIT_LEASE_LOST.
    """
    # Imported here, because the script first adds _IMPORT_FOLDER to `sys.path`.
    from executor.shared.run_until import run_deadline_from_environment  # noqa: PLC0415

    _start_session()
    become_subreaper()
    prefer_this_process_for_oom_kill()
    signal_pipe = SignalPipe([signal.SIGCHLD, signal.SIGTERM])
    try:
        child_pid = spawn(command, os.environ)
    except OSError as error:
        sys.stdout.write(f"{command[0]}: {error.strerror}\n")
        return _EXIT_COMMAND_NOT_STARTED
    code = wait_for_child(child_pid, signal_pipe, run_deadline_from_environment(os.environ))
    end_processes(descendants_of_this_subreaper)
    return code


def wait_for_child(
    child_pid: int, signal_pipe: SignalPipe, run_deadline: RunDeadline | None, *, agent_or_client_fd: int = _STDIN_FD
) -> int:
    """Wait for a child's end and return its exit code. Return earlier when the child must be ended.

    `agent_or_client_fd` is this process's end of a pipe to the agent, or of a socket to the client (the process that
    requested a warm run). The agent or client writes nothing, so `agent_or_client_fd` becomes readable only when the
    other end is closed. If the child must be ended, the exit code is EXIT_ENDED_BY_GUARD (TERM was received, or the
    other end was closed) or EXIT_LEASE_LOST (`run_deadline` has passed, because the agent has not renewed its leases in
    time). `run_deadline` is None if the run has no deadline. `signal_pipe` must include CHLD and TERM.
    """
    poll = select.poll()
    poll.register(signal_pipe.read_fd, select.POLLIN)
    poll.register(agent_or_client_fd, select.POLLIN)
    timeout_ms = None if run_deadline is None else _DEADLINE_CHECK_INTERVAL_S * 1000
    while True:
        is_other_end_closed = any(fd == agent_or_client_fd for fd, _events in poll.poll(timeout_ms))
        # Children are reaped before TERM is checked, so that a child that has already ended returns its own exit code.
        wait_statuses = reap_children()
        if child_pid in wait_statuses:
            return exit_code_of_wait_status(wait_statuses[child_pid])
        if is_other_end_closed or signal.SIGTERM in signal_pipe.read():
            return EXIT_ENDED_BY_GUARD
        if run_deadline is not None and run_deadline.has_passed():
            return EXIT_LEASE_LOST


def prefer_this_process_for_oom_kill() -> None:
    """Make the kernel's OOM killer kill this process, or a process that it starts, before it kills the agent."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(_OOM_SCORE_ADJUSTMENT)


def spawn(command: list[str], env: Mapping[str, str]) -> int:
    """Start `command` with standard input from /dev/null and default signal handling; return its process id."""
    return os.posix_spawnp(
        command[0],
        command,
        env,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
        setsigmask=[],
        setsigdef=_SIGNALS_WITH_DEFAULT_HANDLING,
    )


def exec_and_die_with_parent(parent_pid: int, command: list[str]) -> NoReturn:
    """Start a new session, and replace this process by `command`. The kernel kills `command` when `parent_pid` dies.

    The supervisor starts the agent in this way, and `smith lab-test` starts pytest in this way.
    """
    _start_session()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the parent has died before prctl was called
        sys.exit(1)
    for signum in (signal.SIGHUP, signal.SIGUSR1):  # the signals would kill the command before it has set its handlers
        signal.signal(signum, signal.SIG_IGN)
    os.execvp(command[0], command)  # noqa: S606  on purpose: no shell between the parent and the command


def guard_command_prefix() -> list[str]:
    """Return a command prefix. The command that is appended to the prefix runs under `guard`."""
    return [sys.executable, "-I", "-S", SCRIPT, "guard"]


def killed_with_parent_prefix(parent_pid: int) -> list[str]:
    """Return a command prefix. The kernel kills the command that is appended to the prefix when `parent_pid` dies."""
    return [sys.executable, "-I", "-S", SCRIPT, "killed-with-parent", str(parent_pid)]


def exit_code_of_wait_status(wait_status: int) -> int:
    """Convert a wait status to an exit code as shells do: 128 + n for signal n."""
    code = os.waitstatus_to_exitcode(wait_status)  # -n for signal n
    return code if code >= 0 else _SIGNAL_EXIT_CODE_BASE - code


def _parents_by_pid() -> dict[int, int]:
    """Return the id of each live process (key) with the id of its parent (value). A zombie is not a live process."""
    parent_by_pid: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            state, ppid = _state_and_parent(name)
            if state not in (b"Z", b"X", b""):  # zombie, dead, or no stat file any more
                parent_by_pid[int(name)] = int(ppid)
    return parent_by_pid


def _state_and_parent(pid: str) -> tuple[bytes, bytes]:
    """Return the state and the parent's id of a process; both are empty when the process has ended.

    The file's format is `pid (name) state ppid …`. The name may contain spaces and brackets, so the file is split after
    the last bracket.
    """
    fields = _read_proc_file(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return (fields[0], fields[1]) if len(fields) > 1 else (b"", b"")


def _descendants_of(root_pids: Iterable[int], parent_by_pid: dict[int, int]) -> set[int]:
    """Return the ids of the descendants of these processes. `parent_by_pid` maps each process to its parent."""
    children: dict[int, list[int]] = {}
    for pid, parent in parent_by_pid.items():
        children.setdefault(parent, []).append(pid)
    all_descendants: set[int] = set()
    unvisited_pids = list(root_pids)
    while unvisited_pids:
        new_pids = [pid for pid in children.get(unvisited_pids.pop(), ()) if pid not in all_descendants]
        all_descendants.update(new_pids)
        unvisited_pids.extend(new_pids)
    return all_descendants


def _read_proc_file(path: str) -> bytes:
    """Return a /proc file's content; empty when the process has ended or belongs to another user."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def _start_session() -> None:
    """Make this process the leader of a new session, outside the process group of its parent."""
    with contextlib.suppress(PermissionError):  # raised when this process already leads a process group
        os.setsid()


def _prctl(option: int, value: int) -> None:
    import ctypes  # noqa: PLC0415  this import takes 3 ms, and few callers need it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


if __name__ == "__main__":
    if sys.argv[1] == "guard":
        sys.path.append(_IMPORT_FOLDER)  # the last entry, so that no module of the standard library is replaced
        sys.exit(guard(sys.argv[2:]))
    exec_and_die_with_parent(int(sys.argv[2]), sys.argv[3:])  # the first argument is "killed-with-parent"
