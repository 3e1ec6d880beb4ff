"""Forks a guard process for each requested playbook run. The guard forks the run and supervises it.

A playbook server imports Ansible once, and each warm run is a fork of it. A cold run is a new ansible-playbook process.
A client is a process that the agent starts to request one warm run from the server (`client.py`).

    server ──fork──▶ guard (one per client, child subreaper) ──fork──▶ the run

The server does not read requests, so no request can block it. The guard reads the request, and refuses a request
that it does not support. Then the guard supervises the run as `process_tree.guard` supervises a cold run: it ends the
whole process tree when the run has ended, when the client has closed the connection, or when the agent has not renewed
its leases in time. A run whose guard exists does not need the server any more.

After a fork, /proc/<pid>/environ of the new process shows the server's environment. The guard replaces this text with
the request's values of VARIABLES_SHOWN_IN_PROC, and the run inherits the new text. So the agent finds the processes of
warm runs and of cold runs in the same way, by their environment.
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
from executor.runs.warm.protocol import REFUSED, Refusal, Request
from executor.shared.run_until import run_deadline_from_environment

#: The line that a server writes to its standard output when it is ready to accept clients.
READY = b"ready\n"
#: The beginning of a line in a server's log that states why a run was refused.
REFUSED_LINE_START = "refused: "
#: An environment variable of a server. Its value has RESERVED_BYTES bytes and no meaning. It only makes the memory of
#: the environment larger. The server's forks overwrite this memory with VARIABLES_SHOWN_IN_PROC.
RESERVED_VARIABLE = "SMITH_WARM_ROOM"
RESERVED_BYTES = 8192
#: The names of the variables by which operators and the agent find the processes of a run.
VARIABLES_SHOWN_IN_PROC = (b"SMITH_RUN_IDENT", b"SMITH_CREDENTIALS_FILE")
#: Time between TERM and KILL when the guard ends a process tree. The agent waits longer than this for the
#: guard before the agent itself kills the processes of the run.
GRACE_S = 2.0
#: Maximum length of the reason that the guard logs and sends when it refuses a request.
MAX_REASON_BYTES = 1000
#: The file descriptors of standard input, output and error.
STDIN, STDOUT, STDERR = 0, 1, 2

#: A function that the guard calls. It raises Refusal for a request that must not be executed.
CheckRequest = Callable[[Request], None]
#: A function that executes the run and returns its exit code. It is called in a process that already has the request's
#: open files, working directory and environment.
ExecuteRun = Callable[[Request], int]


def serve(socket_path: str, check_request: CheckRequest, execute_run: ExecuteRun) -> None:
    """Accept clients on the socket `socket_path` until the agent closes the server's standard input or dies.

    When the server ends, the runs that it has started continue.
    """
    signal_pipe = process_tree.SignalPipe([signal.SIGCHLD])
    listener = protocol.listen(socket_path)
    gc.collect()
    gc.freeze()  # then garbage collections in the forks do not write to these objects, so their memory stays shared
    gc.enable()  # the playbook server pauses the garbage collector until here
    os.write(STDOUT, READY)
    _discard_output()
    poll = select.poll()
    for fd in (listener.fileno(), signal_pipe.read_fd, STDIN):
        poll.register(fd, select.POLLIN)
    # STDIN becomes ready only when the agent closes it, because the agent writes nothing to it.
    while STDIN not in (ready_fds := {fd for fd, _ in poll.poll()}):
        if listener.fileno() in ready_fds:
            _fork_guard(listener, signal_pipe, check_request, execute_run)
        signal_pipe.read()
        process_tree.reap_children()
    with contextlib.suppress(OSError):
        os.unlink(socket_path)


def _discard_output() -> None:
    """Redirect standard output to /dev/null. The agent reads only READY, and a full pipe would block the server."""
    null_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null_fd, STDOUT)
    os.close(null_fd)


def _fork_guard(
    listener: socket.socket, signal_pipe: process_tree.SignalPipe, check_request: CheckRequest, execute_run: ExecuteRun
) -> None:
    """Accept one client and fork its guard.

    If the fork fails, the connection closes and the client starts a cold run.
    """
    with contextlib.suppress(OSError):
        connection, _ = listener.accept()
        with connection:
            if os.fork() == 0:
                _guard_and_exit(connection, listener, signal_pipe, check_request, execute_run)


# --- the guard --------------------------------------------------------------------------------------------------------


def _guard_and_exit(
    connection: socket.socket,
    listener: socket.socket,
    signal_pipe: process_tree.SignalPipe,
    check_request: CheckRequest,
    execute_run: ExecuteRun,
) -> NoReturn:
    """Supervise the run of one client in this fork, or refuse the client's request. Then end this process."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)  # this fork's signals must not be written to the server's signal pipe
        listener.close()
        os.close(signal_pipe.read_fd)
        code = _supervise_run(connection, check_request, execute_run)
    except Refusal as refusal:
        reason = str(refusal).encode()[:MAX_REASON_BYTES]
        with contextlib.suppress(OSError):
            if reason:  # empty for an invalid request, which is not logged
                # Standard error is the server's log, in which the agent reads this line.
                os.write(STDERR, REFUSED_LINE_START.encode() + reason + b"\n")
            connection.sendall(REFUSED + reason)
    except OSError:  # the client has closed the connection before the run was started
        pass
    finally:
        os._exit(code)


def _supervise_run(connection: socket.socket, check_request: CheckRequest, execute_run: ExecuteRun) -> int:
    """Read and check the request, start the run, wait for the run, and end all its processes.

    Return the exit code of the guard. Raises Refusal or OSError only before the run is started.
    """
    os.setsid()
    process_tree.become_subreaper()
    # If memory runs out, the kernel kills this guard and its run, which inherits the setting, before the agent.
    process_tree.prefer_this_process_for_oom_kill()
    request = protocol.receive_request(connection)
    check_request(request)
    show_environment_in_proc({name: request.env[name] for name in VARIABLES_SHOWN_IN_PROC if name in request.env})
    signal_pipe = process_tree.SignalPipe([signal.SIGCHLD, signal.SIGTERM])
    if not protocol.accept_request_and_wait_for_start_message(connection):  # the client has ended
        return 0
    # `run_deadline` reads the deadline from a file at each check, and the agent writes each new deadline to this file.
    # The path of the file is in the environment. Without a path, `run_deadline` is None, and the run has no deadline.
    run_deadline = run_deadline_from_environment(
        {os.fsdecode(name): os.fsdecode(value) for name, value in request.env.items()}
    )
    child_pid = os.fork()
    if child_pid == 0:
        _run_and_exit(request, execute_run)
    # The agent reads the output until all writers have closed it, so the guard closes its own file descriptors.
    for fd in (STDIN, STDOUT, STDERR, *request.file_descriptors):
        with contextlib.suppress(OSError):
            os.close(fd)
    # `connection` leads to the client. If the client closes its end, this call returns before the run has ended.
    code = process_tree.wait_for_child(child_pid, signal_pipe, run_deadline, agent_or_client_fd=connection.fileno())
    process_tree.end_processes(process_tree.descendants_of_this_subreaper, grace_s=GRACE_S)
    show_environment_in_proc({})  # the run has ended, so a search for its processes must not find this process
    with contextlib.suppress(OSError):
        protocol.send_exit_code(connection, code)
    return 0


def show_environment_in_proc(entries: dict[bytes, bytes]) -> None:
    """Make /proc/<pid>/environ of this process and its forks show only these entries. Clear `os.environ`.

    /proc/<pid>/environ shows the memory between two addresses, which /proc/self/stat contains. Raises Refusal when this
    memory is too small for the entries, or when the kernel hides the addresses.
    """
    # The array `environ` of the C library has pointers to the memory that is overwritten below. `os.environ.clear()`
    # removes these pointers. Later, `_apply_request` sets the variables of the request.
    os.environ.clear()
    with open("/proc/self/stat", "rb") as file:
        fields_from_third = file.read().rpartition(b")")[2].split()  # the second field is the name in parentheses
    # The addresses are env_start and env_end, the fields 50 and 51 of proc(5). proc(5) counts from 1.
    start, end = int(fields_from_third[50 - 3]), int(fields_from_third[51 - 3])
    text = b"".join(name + b"=" + value + b"\0" for name, value in entries.items())
    if not 0 < start <= start + len(text) <= end:
        raise Refusal(f"the variables of the run do not fit into the {end - start} bytes of /proc/<pid>/environ")
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, text, len(text))


# --- the run ----------------------------------------------------------------------------------------------------------


def _run_and_exit(request: Request, execute_run: ExecuteRun) -> NoReturn:
    """Execute the run in this fork. Then end this process with the run's exit code."""
    code = 1
    try:
        _apply_request(request)
        code = execute_run(request)
    except BaseException:  # the run fails, and its output contains the traceback
        import traceback  # noqa: PLC0415  used only here

        traceback.print_exc()
    finally:
        _exit_without_freeing(code)


def _apply_request(request: Request) -> None:
    """Give this process the request's files, working directory and environment, and the default signal handlers."""
    signal.set_wakeup_fd(-1)  # this fork's signals must not be written to the guard's signal pipe
    # HUP and USR1 are in the list because the agent ignores them, and this process has inherited this setting.
    for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_DFL)
    for standard_fd, fd in enumerate(request.file_descriptors):
        os.dup2(fd, standard_fd)
    # Close all files except standard input, output and error.
    highest_fd = max(int(name) for name in os.listdir("/proc/self/fd"))
    os.closerange(STDERR + 1, highest_fd + 1)
    os.chdir(request.cwd)
    os.environb.clear()
    os.environb.update(request.env)
    time.tzset()


def _exit_without_freeing(code: int) -> NoReturn:
    """Exit as the interpreter does, but free no objects: freeing them would copy memory that all forks share."""
    try:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    finally:
        os._exit(code)


def exit_code_of_system_exit(system_exit: SystemExit) -> int:
    """Return the exit code with which the interpreter would exit for `system_exit`.

    If `system_exit` contains a text, write the text to stderr, as the interpreter does.
    """
    if system_exit.code is None:
        return 0
    if isinstance(system_exit.code, int):
        return system_exit.code & 0xFF
    sys.stderr.write(f"{system_exit.code}\n")
    return 1
