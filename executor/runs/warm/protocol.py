"""Implements the protocol between a client and a server of warm runs: request, acceptance or refusal, exit code.

A request contains the working directory, the command line, the environment and three open files of a run. `client.py`
implements the client's side a second time, because importing this module would take longer than the whole script.
"""

from __future__ import annotations

import array  # noqa: F401  `recv_fds` imports it; it is imported here once, so that no fork needs to
import os
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

#: The server's messages. The reason follows REFUSED, and the run's exit code follows ENDED.
ACCEPTED, REFUSED, ENDED = b"A", b"R", b"E"
#: The client's message after ACCEPTED. The run starts only after this message, so that no run starts for a client that
#: has died.
GO = b"G"
#: A larger request is refused. A usual request has a few kilobytes.
MAX_REQUEST_BYTES = 4 * 1024 * 1024
REQUEST_TIMEOUT_S = 10.0
#: The number of open files in a request: standard input, output and error.
FILES = 3


class Refusal(Exception):
    """The server refuses this request. The client then starts a cold run: a new process without the server."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The run that a client requests."""

    cwd: bytes
    argv: list[str]
    env: dict[bytes, bytes] = field(repr=False)
    files: list[int]  #: descriptors of the run's standard input, output and error


# --- client -----------------------------------------------------------------------------------------------------------


def connect(path: str) -> socket.socket:
    """Connect to the socket at `path`, which may be longer than the 108 bytes of a socket's address."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(REQUEST_TIMEOUT_S)
    try:
        at_path(path, connection.connect)
    except OSError:
        connection.close()
        raise
    return connection


def send_request(connection: socket.socket, request: Request) -> bytes:
    """Send a request. Return b"" if the server has started the run, else the reason of its refusal. Raises OSError."""
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
    """Wait for the end of a run and return its exit code; 137 if its guard was killed."""
    answer = b""
    while len(answer) < 5:
        if not (data := connection.recv(5 - len(answer))):
            return 128 + signal.SIGKILL
        answer += data
    return int(struct.unpack("!i", answer[1:])[0])


def is_answering(path: str, timeout_s: float) -> bool:
    """Send an empty request. Return True if a guard refuses it, which proves that the server can fork guards."""
    try:
        with connect(path) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(struct.pack("!I", 0))
            return connection.recv(1) == REFUSED
    except OSError:
        return False


# --- server -----------------------------------------------------------------------------------------------------------


def listen(path: str) -> socket.socket:
    """Listen on a new socket at `path`, to which only the agent's user and root can connect."""
    listener = socket.socket(socket.AF_UNIX)
    previous_umask = os.umask(0o177)  # the socket must have a private mode from the start
    try:
        at_path(path, listener.bind)
    finally:
        os.umask(previous_umask)
    listener.listen(512)
    return listener


def receive(connection: socket.socket) -> Request:
    """Read a request. Raises Refusal when the request is not valid, OSError when the connection fails."""
    connection.settimeout(REQUEST_TIMEOUT_S)
    _check_peer(connection)
    message, files, _, _ = socket.recv_fds(connection, 65536, FILES)
    if len(message) < 4 or not 0 < (size := struct.unpack("!I", message[:4])[0]) <= MAX_REQUEST_BYTES:
        raise Refusal("")  # an empty reason is not logged, because `is_answering` sends empty requests
    body = message[4:]
    while len(body) < size:
        if not (data := connection.recv(65536)):
            raise Refusal("")
        body += data
    cwd, argument_count, *arguments_and_entries = body.split(b"\0")
    if len(files) != FILES:
        raise Refusal("")
    count = int(argument_count)
    entries = [entry.partition(b"=") for entry in arguments_and_entries[count:]]
    return Request(
        cwd=cwd,
        argv=[os.fsdecode(argument) for argument in arguments_and_entries[:count]],
        env={name: value for name, _, value in entries},
        files=files,
    )


def send_accepted(connection: socket.socket) -> bool:
    """Accept a request. Return True when the client answers GO; the run must then start."""
    connection.sendall(ACCEPTED)
    if connection.recv(1) != GO:
        return False
    connection.settimeout(None)
    return True


def send_code(connection: socket.socket, code: int) -> None:
    """Report the end of a run and its exit code."""
    connection.sendall(ENDED + struct.pack("!i", code))


def at_path(path: str, act: Callable[[str], None]) -> None:
    """Call `act` with a short path of the file at `path`.

    The short path names the file's folder by a file descriptor, because a socket's address has at most 108 bytes.
    """
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        act(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def _check_peer(connection: socket.socket) -> None:
    """Refuse a request of another user. Root can connect in spite of the socket's mode, but is refused here."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", peer)[1] != os.geteuid():
        raise Refusal("the request is from another user")
