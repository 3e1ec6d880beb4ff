"""Processes as trees: find everything that a run, or the agent, has started, and end it.

Killing a process group is not enough: ansible-core's workers call setsid, so a killed ansible-playbook leaves its
worker, the module and whatever the module started alive, and they go on changing VMs. Three nets catch them:

* `keep` is the parent of one run. It is a child subreaper, so that everything the run starts stays below it, however
  often it forks, and it ends the whole tree when the run is over, when it is told to, or when the agent is gone.
* `marked` finds processes by an environment variable that every run carries, when the keeper itself was killed.
* the supervisor is a subreaper too and ends what is left when its agent dies.

Lowest layer, standard library only: this file is also run as a script (`python -I -S`, 15 ms), without site-packages.
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
if TYPE_CHECKING:  # the script's start must stay cheap
    from collections.abc import Callable, Iterable, Mapping
    from typing import NoReturn

#: This file, for those who run it.
SCRIPT = os.path.abspath(__file__)
#: How long a tree may take to end by itself before it is killed. R7: nothing is alive 5 s after the end.
GRACE_S = 3.0
#: Exit code of `keep` when it ended the run because it was told to.
ENDED = 254
#: A process in uninterruptible sleep outlives even SIGKILL: stop waiting for it.
_GIVE_UP_S = 5.0
_STEP_S = 0.05
_DEFAULTS = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGUSR1]  # Python ignores some, we may the others
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Make orphaned descendants of this process its children instead of init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_undumpable() -> None:
    """Let nobody but root look into this process: no core dump, no debugger, no environment in /proc.

    It holds secrets, and what it starts (a provider's playbook, too) runs as the same user. The kernel takes it back
    with the next exec, so runs are as before.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def descendants(*roots: int) -> set[int]:
    """Everything alive below `roots`, without the roots."""
    return _below(_parents(), roots)


def marked(name: str, value_start: str) -> set[int]:
    """Processes whose environment has `name` with a value that starts so, and everything below them, without us."""
    entry = f"\0{name}={value_start}".encode()
    parents = _parents()
    found = {pid for pid in parents if entry in b"\0" + _read(f"/proc/{pid}/environ")}
    return (found | _below(parents, found)) - {os.getpid()}


def end(find: Callable[[], Iterable[int]], *, grace_s: float = GRACE_S) -> set[int]:
    """End the processes that `find` names: TERM, `grace_s` to go, then KILL. Returns those that it met.

    `find` is asked until it names none, because a process may start another one while it ends.
    """
    started = time.monotonic()
    met: set[int] = set()
    while alive := set(find()):
        waited = time.monotonic() - started
        if waited > grace_s + _GIVE_UP_S:
            break
        for pid in alive if waited >= grace_s else alive - met:
            send(pid, signal.SIGKILL if waited >= grace_s else signal.SIGTERM)
        met |= alive
        time.sleep(_STEP_S)
    return met


def send(pid: int, signum: int) -> None:
    """Signal a process that may be gone already, or that belongs to somebody else."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)


def reap() -> dict[int, int]:
    """Collect every child that has ended: process id to wait status."""
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
    """Signals as bytes in a pipe: a handler does nothing but that, and a loop can wait for them with its other work."""

    def __init__(self, signals: Iterable[int]) -> None:
        self.reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for signum in signals:
            signal.signal(signum, lambda *_: None)

    def read(self) -> bytes:
        """The numbers of the signals that came since the last call."""
        try:
            return os.read(self.reader, 4096)
        except BlockingIOError:
            return b""


def keep(command: list[str]) -> int:
    """Run `command` to its end, or until standard input closes or TERM comes; leave none of its processes alive.

    Standard input is the lifeline: its other end is the agent's, so it closes even when the agent is killed.
    Returns the command's exit code (128 + n for signal n), or ENDED.
    """
    _leave_group()
    become_subreaper()
    offer_to_oom_killer()
    wakeups = Wakeups([signal.SIGCHLD, signal.SIGTERM])
    try:
        child = spawn(command, os.environ)
    except OSError as exc:
        sys.stdout.write(f"{command[0]}: {exc.strerror}\n")
        return 127
    code = attend(child, wakeups)
    end(lambda: descendants(os.getpid()))
    return ENDED if code is None else code


def attend(child: int, wakeups: Wakeups, *, lifeline: int = 0) -> int | None:
    """Wait for a child's end and return its exit code, or None: TERM came, or the lifeline's other end is gone.

    `wakeups` watch CHLD and TERM. The lifeline never carries data: readable means closed.
    """
    poll = select.poll()
    poll.register(wakeups.reader, select.POLLIN)
    poll.register(lifeline, select.POLLIN)
    while True:
        closed = any(fd == lifeline for fd, _ in poll.poll())
        ended = reap()  # before the question of who asked: a run that has ended keeps its own exit code
        if child in ended:
            return exit_code(ended[child])
        if closed or signal.SIGTERM in wakeups.read():
            return None


def offer_to_oom_killer() -> None:
    """When memory runs out, the kernel shall take a run and not the agent."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("500")


def spawn(command: list[str], env: Mapping[str, str]) -> int:
    """Start `command` with standard input from /dev/null and clean signals; return its process id."""
    return os.posix_spawnp(
        command[0],
        command,
        env,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
        setsigmask=[],
        setsigdef=_DEFAULTS,
    )


def exec_tied(parent: int, command: list[str]) -> NoReturn:
    """Become `command`, killed by the kernel the moment that `parent` is gone; in a session of its own."""
    _leave_group()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel knew of our wish
        sys.exit(1)
    for signum in (signal.SIGHUP, signal.SIGUSR1):  # by default they would kill a command that does not handle them
        signal.signal(signum, signal.SIG_IGN)
    os.execvp(command[0], command)  # noqa: S606  the very purpose: no shell between the supervisor and its agent


def keeper_command() -> list[str]:
    """The command line to which a run's own is appended."""
    return [sys.executable, "-I", "-S", SCRIPT, "keep"]


def tied_command(parent: int) -> list[str]:
    """The command line to which the agent's own is appended."""
    return [sys.executable, "-I", "-S", SCRIPT, "tie", str(parent)]


def exit_code(status: int) -> int:
    """A wait status as a shell would tell it: 128 + n for signal n."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _parents() -> dict[int, int]:
    """Every process that is alive, and its parent. A zombie has no work left to do and does not count."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            state, ppid = _stat(name)
            if state not in (b"Z", b"X", b""):
                parents[int(name)] = int(ppid)
    return parents


def _stat(name: str) -> tuple[bytes, bytes]:
    # pid (name) state ppid …; the name may hold spaces and brackets itself
    fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
    return (fields[0], fields[1]) if len(fields) > 1 else (b"", b"")


def _below(parents: dict[int, int], roots: Iterable[int]) -> set[int]:
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
    """A /proc file, or nothing: the process may be gone, or somebody else's."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def _leave_group() -> None:
    with contextlib.suppress(PermissionError):  # already the leader of a session of its own
        os.setsid()


def _prctl(option: int, value: int) -> None:
    import ctypes  # noqa: PLC0415  3 ms that `descendants` and its like do without

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        sys.exit(keep(sys.argv[2:]))
    exec_tied(int(sys.argv[2]), sys.argv[3:])
