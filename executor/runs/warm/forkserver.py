"""What both servers share: a loop that accepts and forks, and the guard of each fork.

    server ──fork──▶ guard (one a request, child subreaper) ──fork──▶ the run

The server imports, listens and forks; it reads no request, so that none can hang it, and a run does not need it any
more once its guard lives. The guard reads the request, refuses what it does not know, and keeps the run as
`process_tree.keep` does: it ends everything below it when the run is over, or when whoever asked for it is gone.

Guard and run show the environment of their request in /proc/<pid>/environ, where a fork would show the server's: who
looks for the processes of a run finds them, warm or cold.
"""

from __future__ import annotations

import array  # noqa: F401  recv_fds would import it in every guard
import atexit
import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from executor.processes import process_tree

ACCEPTED, REFUSED, ENDED = b"A", b"R", b"E"
#: The asker's word after ACCEPTED. Before it nothing has begun, so that an asker who is gone by then leaves nothing.
GO = b"G"
READY = b"ready\n"
REFUSED_LINE = "refused: "
#: Reserves room in a server's environment for what its forks show there.
ROOM_VARIABLE = "SMITH_WARM_ROOM"
ROOM_BYTES = 8192
#: What the environment of a run is known by. `runner.py` chooses the names; a test holds the two together.
SHOWN = (b"SMITH_RUN_IDENT", b"SMITH_CREDENTIALS_FILE")
#: A request is a few kilobytes; whoever sends more, or nothing, is none of ours.
MAX_REQUEST_BYTES = 4 * 1024 * 1024
REQUEST_S = 10.0
#: Given to a tree between TERM and KILL. Less than the outer keeper's own grace: it waits for us.
GRACE_S = 2.0
FILES = 3


class Refusal(Exception):
    """This request is to be run the ordinary way."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run is to be."""

    cwd: bytes
    argv: list[str]
    env: dict[bytes, bytes] = field(repr=False)
    files: list[int]  #: standard input, output and error


#: Raises Refusal. Runs in the guard.
Check = Callable[[Request], None]
#: Becomes the run; returns its exit code. Runs in a process of its own, with the request's files, folder, environment.
Work = Callable[[Request], int]


def serve(path: str, check: Check, work: Work) -> None:
    """Listen on `path` until standard input closes: the agent is gone, or wants another server. Runs go on."""
    wakeups = process_tree.Wakeups([signal.SIGCHLD])
    listener = _listen(path)
    gc.collect()
    gc.freeze()  # forks share these pages for as long as nobody writes to them
    os.write(1, READY)
    _leave_output()
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


def connect(path: str) -> socket.socket:
    """Connect by the folder's descriptor: a socket's name may have 108 bytes, a folder's more."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(REQUEST_S)
    try:
        _at(path, connection.connect)
    except OSError:
        connection.close()
        raise
    return connection


def ask(connection: socket.socket, request: Request) -> bytes:
    """Send a request; return b"" when it was accepted and has begun, or why it was refused. Raises OSError."""
    entries = [name + b"=" + value for name, value in request.env.items()]
    arguments = [os.fsencode(argument) for argument in request.argv]
    body = b"\0".join([request.cwd, b"%d" % len(arguments), *arguments, *entries])
    message = struct.pack("!I", len(body)) + body
    sent = socket.send_fds(connection, [message], request.files)
    connection.sendall(message[sent:])
    answer = connection.recv(1024)
    if not answer.startswith(ACCEPTED):
        return answer.removeprefix(REFUSED) or b"no answer"
    connection.settimeout(None)
    connection.sendall(GO)
    return b""


def receive_code(connection: socket.socket) -> int:
    """Wait for the end of a run; return its exit code, 137 when its guard was killed."""
    answer = b""
    while len(answer) < 5:
        if not (data := connection.recv(5 - len(answer))):
            return 128 + signal.SIGKILL
        answer += data
    return int(struct.unpack("!i", answer[1:])[0])


def is_answering(path: str, within_s: float) -> bool:
    """Ask a server for nothing: True when it accepts, forks, and its guard says no."""
    try:
        with connect(path) as connection:
            connection.settimeout(within_s)
            connection.sendall(struct.pack("!I", 0))
            return connection.recv(1) == REFUSED
    except OSError:
        return False


# --- the server ---------------------------------------------------------------------------------------------------


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)  # from its first moment on the socket is ours alone
    try:
        _at(path, listener.bind)
    finally:
        os.umask(before)
    listener.listen(512)
    return listener


def _at(path: str, act: Callable[[str], None]) -> None:
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        act(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def _leave_output() -> None:
    """Nobody reads the server's output after READY; a full pipe would stop it."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.close(null)


def _fork_guard(listener: socket.socket, wakeups: process_tree.Wakeups, check: Check, work: Work) -> None:
    """Fork for one asker. One for whom there is no process sees the connection close, and goes the ordinary way."""
    with contextlib.suppress(OSError):
        connection, _ = listener.accept()
        with connection:
            if os.fork() == 0:
                _be_guard(connection, listener, wakeups, check, work)


def _be_guard(
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
                os.write(2, REFUSED_LINE.encode() + reason + b"\n")  # the agent reads the server's log
            connection.sendall(REFUSED + reason)
    except OSError:  # the asker is gone before anything began
        pass
    finally:
        os._exit(code)


# --- the guard ----------------------------------------------------------------------------------------------------


def _guard(connection: socket.socket, check: Check, work: Work) -> int:
    """Check the request, run it, and leave nothing of it alive. Raises Refusal, OSError: nothing has begun then."""
    os.setsid()
    process_tree.become_subreaper()
    process_tree.offer_to_oom_killer()
    request = _receive(connection)
    check(request)
    show_environment({name: value for name in SHOWN if (value := request.env.get(name)) is not None})
    wakeups = process_tree.Wakeups([signal.SIGCHLD, signal.SIGTERM])
    connection.sendall(ACCEPTED)
    if connection.recv(1) != GO:
        return 0
    connection.settimeout(None)
    child = os.fork()
    if child == 0:
        _be_run(request, wakeups, work)
    for fd in (0, 1, 2, *request.files):  # the end of the run's output must be seen when the run ends
        with contextlib.suppress(OSError):
            os.close(fd)
    code = process_tree.attend(child, wakeups, lifeline=connection.fileno())
    process_tree.end(lambda: process_tree.descendants(os.getpid()), grace_s=GRACE_S)
    show_environment({})  # whoever looks for the run's processes once it has ended finds none
    with contextlib.suppress(OSError):
        connection.sendall(ENDED + struct.pack("!i", process_tree.ENDED if code is None else code))
    return 0


def _receive(connection: socket.socket) -> Request:
    connection.settimeout(REQUEST_S)
    _check_peer(connection)
    message, files, _, _ = socket.recv_fds(connection, 65536, FILES)
    if len(message) < 4 or not 0 < (size := struct.unpack("!I", message[:4])[0]) <= MAX_REQUEST_BYTES:
        raise Refusal("")  # no request of ours, and no reason for the log: the agent asks whether we answer
    body = message[4:]
    while len(body) < size:
        if not (data := connection.recv(65536)):
            raise Refusal("")
        body += data
    cwd, count, *rest = body.split(b"\0")
    if len(files) != FILES:
        raise Refusal("")
    entries = [entry.partition(b"=") for entry in rest[int(count) :]]
    return Request(
        cwd=cwd,
        argv=[os.fsdecode(argument) for argument in rest[: int(count)]],
        env={name: value for name, _, value in entries},
        files=files,
    )


def _check_peer(connection: socket.socket) -> None:
    """The socket's mode lets nobody else in; root could come all the same."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", peer)[1] != os.geteuid():
        raise Refusal("somebody else's request")


def show_environment(entries: dict[bytes, bytes]) -> None:
    """Let /proc/<pid>/environ of this process and of its forks show these entries, and forget its own environment.

    The kernel shows the memory between two addresses, which it tells the process itself. Raises Refusal when there
    is no room, or the kernel does not tell.
    """
    os.environ.clear()  # nothing may point there any more; the run gets the request's
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[47]), int(fields[48])  # env_start and env_end, fields 50 and 51 of proc(5)
    shown = b"".join(name + b"=" + value + b"\0" for name, value in entries.items())
    if not 0 < start <= start + len(shown) <= end:
        raise Refusal("no room to show a run's environment")
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, shown, len(shown))


# --- the run ------------------------------------------------------------------------------------------------------


def _be_run(request: Request, wakeups: process_tree.Wakeups, work: Work) -> NoReturn:
    code = 1
    try:
        _shed(request)
        code = work(request)
    except BaseException:  # a defect of ours: the run has failed, and says why
        import traceback  # noqa: PLC0415  for this case alone

        traceback.print_exc()
    finally:
        _leave(code)


def _shed(request: Request) -> None:
    """Become as a process that was just started: its files, signals, folder and environment, and nothing else."""
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # the agent may ignore the last two
        signal.signal(signum, signal.SIG_DFL)
    for target, fd in enumerate(request.files):
        os.dup2(fd, target)
    os.closerange(FILES, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)
    os.chdir(request.cwd)
    os.environb.clear()
    os.environb.update(request.env)
    time.tzset()


def _leave(code: int) -> NoReturn:
    """Do what the interpreter does at its end, without the walk through memory that all forks share until then."""
    try:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    finally:
        os._exit(code)


def exit_code(stop: SystemExit) -> int:
    """The exit code that the interpreter would make of it."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    sys.stderr.write(f"{stop.code}\n")
    return 1
