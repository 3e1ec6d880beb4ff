"""Finds and ends all processes that a run, or the agent, has started.

Killing a process group is not enough: ansible-core's workers call setsid, so a killed ansible-playbook leaves its
worker, the module and the module's children alive, and they continue to change VMs. Three mechanisms find them:

* `guard` is the parent of one run. It is a child subreaper: a descendant whose parent ends becomes the guard's child.
  So every process of the run stays a descendant of the guard. The guard ends all of them when the run has ended,
  when the guard receives TERM, or when the agent has died.
* `processes_with_variable` finds processes by an environment variable that is set in every process of a run. It also
  finds the processes of a run whose guard was killed.
* The supervisor is a subreaper, too, and ends the remaining processes when its agent dies.

This file imports the standard library only, because it is also run as a script without site-packages (`python -I -S`).
Such a script starts in 15 ms.
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

#: The path of this file, which is also run as a script.
SCRIPT = os.path.abspath(__file__)
#: Time between TERM and KILL. It keeps promise R7 (docs/promises.md): 5 s after a run has ended, none of its processes
#: is alive.
GRACE_S = 3.0
#: Exit code of `guard` when it has ended the run.
ENDED = 254
#: How long to wait for a process after SIGKILL. A process in uninterruptible sleep ends only after the sleep.
_KILL_WAIT_S = 5.0
_CHECK_INTERVAL_S = 0.05
#: Signals that Python or this project ignores; a child process gets their default handling.
_RESET_SIGNALS = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGUSR1]
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Make this process a child subreaper: its orphaned descendants become its children, not children of init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_undumpable() -> None:
    """Forbid core dumps, debuggers and reading /proc/<pid>/environ of this process to all users but root.

    The process holds secrets, and its child processes (including playbooks that the provider wrote) run as the same
    user. The kernel resets this flag at exec, so child programs are not affected.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def descendants(*roots: int) -> set[int]:
    """Return the live descendants of `roots`, without the roots."""
    return _descendants_of(roots, _parents())


def processes_with_variable(name: str, value_start: str) -> set[int]:
    """Return processes with an environment variable `name` whose value starts with `value_start`.

    The result includes their descendants, but not this process.
    """
    entry = f"\0{name}={value_start}".encode()
    parents = _parents()
    found = {pid for pid in parents if entry in b"\0" + _read(f"/proc/{pid}/environ")}
    return (found | _descendants_of(found, parents)) - {os.getpid()}


def end_processes(find: Callable[[], Iterable[int]], *, grace_s: float = GRACE_S) -> set[int]:
    """Send TERM to the processes that `find` returns, and KILL after `grace_s`; return all processes found.

    `find` is called until it returns no process, because a process may start another one before it ends.
    """
    started = time.monotonic()
    found: set[int] = set()
    while alive := set(find()):
        waited = time.monotonic() - started
        if waited > grace_s + _KILL_WAIT_S:
            break
        for pid in alive if waited >= grace_s else alive - found:
            send(pid, signal.SIGKILL if waited >= grace_s else signal.SIGTERM)
        found |= alive
        time.sleep(_CHECK_INTERVAL_S)
    return found


def send(pid: int, signum: int) -> None:
    """Send a signal. Do nothing when the process has ended or belongs to another user."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)


def reap() -> dict[int, int]:
    """Reap every child that has ended; return wait statuses by process id."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


class Wakeups:
    """Writes each received signal as a byte to a pipe, so that a loop can poll it together with other descriptors."""

    def __init__(self, signals: Iterable[int]) -> None:
        self.reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for signum in signals:
            signal.signal(signum, lambda *_: None)

    def read(self) -> bytes:
        """Return the numbers of the signals received since the last call."""
        try:
            return os.read(self.reader, 4096)
        except BlockingIOError:
            return b""


def guard(command: list[str]) -> int:
    """Run `command` until it ends, standard input closes, or TERM is received; then end all its processes.

    Standard input is a pipe from the agent, so it closes even when the agent is killed.
    Returns the command's exit code (128 + n for signal n), or ENDED.
    """
    _leave_group()
    become_subreaper()
    prefer_this_process_for_oom_kill()
    wakeups = Wakeups([signal.SIGCHLD, signal.SIGTERM])
    try:
        child = spawn(command, os.environ)
    except OSError as exc:
        sys.stdout.write(f"{command[0]}: {exc.strerror}\n")
        return 127
    code = wait_for_child(child, wakeups)
    end_processes(lambda: descendants(os.getpid()))
    return ENDED if code is None else code


def wait_for_child(child: int, wakeups: Wakeups, *, parent_fd: int = 0) -> int | None:
    """Wait for a child's end and return its exit code; None when TERM was received or the parent closed its pipe.

    `wakeups` must include CHLD and TERM. `parent_fd` is this process's end of a pipe from the parent. The parent writes
    nothing to the pipe, so `parent_fd` becomes readable only when the parent closes its end.
    """
    poll = select.poll()
    poll.register(wakeups.reader, select.POLLIN)
    poll.register(parent_fd, select.POLLIN)
    while True:
        closed = any(fd == parent_fd for fd, _ in poll.poll())
        ended = reap()  # reaped before TERM is checked: a run that has already ended returns its own exit code
        if child in ended:
            return exit_code(ended[child])
        if closed or signal.SIGTERM in wakeups.read():
            return None


def prefer_this_process_for_oom_kill() -> None:
    """Make the kernel's OOM killer prefer this process (a run) to the agent."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("500")


def spawn(command: list[str], env: Mapping[str, str]) -> int:
    """Start `command` with standard input from /dev/null and default signal handling; return its process id."""
    return os.posix_spawnp(
        command[0],
        command,
        env,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
        setsigmask=[],
        setsigdef=_RESET_SIGNALS,
    )


def exec_tied_to(parent: int, command: list[str]) -> NoReturn:
    """Replace this process by `command`, in a session of its own; the kernel kills it when `parent` dies."""
    _leave_group()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent has died before prctl was called
        sys.exit(1)
    for signum in (signal.SIGHUP, signal.SIGUSR1):  # by default, they kill a process without a handler for them
        signal.signal(signum, signal.SIG_IGN)
    os.execvp(command[0], command)  # noqa: S606  on purpose: no shell between the supervisor and its agent


def guard_command() -> list[str]:
    """Return a command prefix. The command that is appended to the prefix runs under `guard`."""
    return [sys.executable, "-I", "-S", SCRIPT, "guard"]


def command_tied_to(parent: int) -> list[str]:
    """Return a command prefix. The kernel kills the command that is appended to the prefix when `parent` dies."""
    return [sys.executable, "-I", "-S", SCRIPT, "tie", str(parent)]


def exit_code(status: int) -> int:
    """Convert a wait status to an exit code as shells do: 128 + n for signal n."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _parents() -> dict[int, int]:
    """Return the parent of every live process. Zombies do not count."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            state, ppid = _stat(name)
            if state not in (b"Z", b"X", b""):
                parents[int(name)] = int(ppid)
    return parents


def _stat(name: str) -> tuple[bytes, bytes]:
    # pid (name) state ppid …; the name may contain spaces and brackets
    fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
    return (fields[0], fields[1]) if len(fields) > 1 else (b"", b"")


def _descendants_of(roots: Iterable[int], parents: dict[int, int]) -> set[int]:
    """Return the descendants of `roots`, without the roots. `parents` maps each process to its parent."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    queue = list(roots)
    while queue:
        new = [pid for pid in children.get(queue.pop(), ()) if pid not in found]
        found.update(new)
        queue.extend(new)
    return found


def _read(path: str) -> bytes:
    """Return a /proc file's content; empty when the process has ended or belongs to another user."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def _leave_group() -> None:
    with contextlib.suppress(PermissionError):  # this process leads a session already
        os.setsid()


def _prctl(option: int, value: int) -> None:
    import ctypes  # noqa: PLC0415  this import takes 3 ms, and few callers need it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


if __name__ == "__main__":
    if sys.argv[1] == "guard":
        sys.exit(guard(sys.argv[2:]))
    exec_tied_to(int(sys.argv[2]), sys.argv[3:])
