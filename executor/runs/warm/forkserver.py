"""Implements what both servers of warm runs share: accept a client, fork a guard for it, and supervise the run.

    server ──fork──▶ guard (one per request, child subreaper) ──fork──▶ the run

A server imports Ansible once, and each warm run is forked from the server. The server does not read requests, so no
request can block the server. The guard reads the request, and refuses a request that it does not support. The guard
then supervises the run as `process_tree.guard` supervises a cold run: it ends the whole process tree when the run has
ended, or when the client has closed the connection. As soon as the guard is forked, the run does not need the server.

After a fork, /proc/<pid>/environ of the new process shows the server's environment. The guard replaces this text by
SHOWN_VARIABLES of the request, and the run inherits the replaced text. So the agent finds the processes of a warm run
by their environment, as it finds the processes of a cold run.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from executor.processes import process_tree
from executor.runs.warm import protocol
from executor.runs.warm.protocol import FILES, REFUSED, Refusal, Request

#: What a server writes to its output when it accepts clients.
READY = b"ready\n"
#: The beginning of a line in a server's log that states why a run was refused.
REFUSED_LINE = "refused: "
#: Environment variable of a server. Its long value reserves the memory in which the server's forks show
#: SHOWN_VARIABLES.
RESERVED_VARIABLE = "SMITH_WARM_ROOM"
RESERVED_BYTES = 8192
#: The variables by which the processes of a run are found. `private_folder` has the same names, and a test compares
#: them.
SHOWN_VARIABLES = (b"SMITH_RUN_IDENT", b"SMITH_CREDENTIALS_FILE")
#: Time between TERM and KILL when the guard ends a process tree. It is shorter than the agent's grace period, because
#: the agent waits for the guard.
GRACE_S = 2.0

#: A function that checks a request and raises Refusal. The guard calls it.
Check = Callable[[Request], None]
#: A function that executes the run and returns its exit code. It is called in a process that already has the request's
#: open files, working directory and environment.
Work = Callable[[Request], int]


def serve(path: str, check: Check, work: Work) -> None:
    """Accept clients on the socket `path` until the agent closes the server's standard input or dies.

    Runs that have started continue after the server's end.
    """
    wakeups = process_tree.Wakeups([signal.SIGCHLD])
    listener = protocol.listen(path)
    gc.collect()
    gc.freeze()  # garbage collections in the forks then do not write to these objects, so the forks share their memory
    os.write(1, READY)
    _discard_output()
    poll = select.poll()
    for fd in (listener.fileno(), wakeups.reader, 0):
        poll.register(fd, select.POLLIN)
    while 0 not in (ready := {fd for fd, _ in poll.poll()}):
        if listener.fileno() in ready:
            _fork_guard(listener, wakeups, check, work)
        wakeups.read()
        process_tree.reap()
    with contextlib.suppress(OSError):
        os.unlink(path)


def _discard_output() -> None:
    """Redirect standard output to /dev/null. The agent does not read it after READY, and a full pipe would block."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.close(null)


def _fork_guard(listener: socket.socket, wakeups: process_tree.Wakeups, check: Check, work: Work) -> None:
    """Accept one client and fork its guard.

    If the fork fails, the connection closes and the client starts a cold run.
    """
    with contextlib.suppress(OSError):
        connection, _ = listener.accept()
        with connection:
            if os.fork() == 0:
                _guard_and_exit(connection, listener, wakeups, check, work)


# --- the guard --------------------------------------------------------------------------------------------------------


def _guard_and_exit(
    connection: socket.socket, listener: socket.socket, wakeups: process_tree.Wakeups, check: Check, work: Work
) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        listener.close()
        os.close(wakeups.reader)
        code = _guard(connection, check, work)
    except Refusal as refusal:
        reason = str(refusal).encode()[:1000]
        with contextlib.suppress(OSError):
            if reason:
                os.write(2, REFUSED_LINE.encode() + reason + b"\n")  # the agent reads this line in the server's log
            connection.sendall(REFUSED + reason)
    except OSError:  # the client has closed the connection before the run was started
        pass
    finally:
        os._exit(code)


def _guard(connection: socket.socket, check: Check, work: Work) -> int:
    """Read and check the request, start the run, wait for it, and end all its processes. Return the guard's exit code.

    Raises Refusal or OSError only before the run is started.
    """
    os.setsid()
    process_tree.become_subreaper()
    process_tree.prefer_this_process_for_oom_kill()
    request = protocol.receive(connection)
    check(request)
    show_environment({name: value for name in SHOWN_VARIABLES if (value := request.env.get(name)) is not None})
    wakeups = process_tree.Wakeups([signal.SIGCHLD, signal.SIGTERM])
    if not protocol.send_accepted(connection):
        return 0
    child = os.fork()
    if child == 0:
        _run_and_exit(request, wakeups, work)
    for fd in (0, 1, 2, *request.files):  # the agent reads the output until all writers have closed it
        with contextlib.suppress(OSError):
            os.close(fd)
    code = process_tree.wait_for_child(child, wakeups, parent_fd=connection.fileno())
    process_tree.end_processes(lambda: process_tree.descendants(os.getpid()), grace_s=GRACE_S)
    show_environment({})  # the run has ended, so a search for its processes must not find this guard
    with contextlib.suppress(OSError):
        protocol.send_code(connection, process_tree.ENDED if code is None else code)
    return 0


def show_environment(entries: dict[bytes, bytes]) -> None:
    """Make /proc/<pid>/environ of this process and its forks show only these entries. Clear `os.environ`.

    /proc/<pid>/environ shows the memory between two addresses, which /proc/self/stat contains. Raises Refusal when this
    memory is too small for the entries, or when the kernel hides the addresses.
    """
    # The memory of the variables is overwritten below, so no variable may remain. `_apply` sets the request's
    # variables.
    os.environ.clear()
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[47]), int(fields[48])  # env_start and env_end, fields 50 and 51 of proc(5)
    shown = b"".join(name + b"=" + value + b"\0" for name, value in entries.items())
    if not 0 < start <= start + len(shown) <= end:
        raise Refusal("the run's environment does not fit into /proc/<pid>/environ")
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, shown, len(shown))


# --- the run ----------------------------------------------------------------------------------------------------------


def _run_and_exit(request: Request, wakeups: process_tree.Wakeups, work: Work) -> NoReturn:
    code = 1
    try:
        _apply(request)
        code = work(request)
    except BaseException:  # a defect of this server: the run fails, with the traceback in its output
        import traceback  # noqa: PLC0415  used only here

        traceback.print_exc()
    finally:
        _exit(code)


def _apply(request: Request) -> None:
    """Give this process the request's files, working directory and environment, and a new process's signal handlers."""
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # the agent may ignore HUP and USR1
        signal.signal(signum, signal.SIG_DFL)
    for target, fd in enumerate(request.files):
        os.dup2(fd, target)
    os.closerange(FILES, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)
    os.chdir(request.cwd)
    os.environb.clear()
    os.environb.update(request.env)
    time.tzset()


def _exit(code: int) -> NoReturn:
    """Exit as the interpreter does, but free no objects. Freeing objects would copy memory that all forks share."""
    try:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    finally:
        os._exit(code)


def exit_code(stop: SystemExit) -> int:
    """Return the exit code with which the interpreter would exit if `stop` was not caught."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    sys.stderr.write(f"{stop.code}\n")
    return 1
