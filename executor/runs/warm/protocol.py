"""Implements the server's side of the protocol of warm runs, and the probe with which the agent tests a server.

A warm run is a fork of a server process that has already imported Ansible. For each warm run, the agent starts the
script `client.py`: the client, which requests the run from the server. For each client, the server forks a guard: the
process that reads and checks the client's request, forks and supervises the run, and sends the exit code.

The client sends the request: the working directory, command line, environment and three open files of a run. The guard
answers ACCEPTED or REFUSED. After ACCEPTED, the client sends GO and the guard starts the run. At the end of the run,
the guard sends ENDED and the exit code. `client.py` imports nothing of this module, because the import would take
longer than the whole script.
"""

from __future__ import annotations

import array  # noqa: F401  `recv_fds` imports it in each fork, unless it is imported before the fork
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

#: The messages that a guard sends to its client. The reason of a refusal follows REFUSED. The run's exit
#: code, as 4 bytes, follows ENDED.
ACCEPTED, REFUSED, ENDED = b"A", b"R", b"E"
#: The client's message after ACCEPTED. The run starts only after this message, so that no run starts for a client that
#: has died.
GO = b"G"
#: The format of a request's size, which precedes the request.
SIZE_FORMAT = "!I"
SIZE_BYTES = struct.calcsize(SIZE_FORMAT)
#: The format of an exit code, which follows ENDED.
EXIT_CODE_FORMAT = "!i"
#: Maximum size of a request. A larger request is refused. A usual request has a few kilobytes.
MAX_REQUEST_BYTES = 4 * 1024 * 1024
#: How many clients may wait until the server accepts them.
MAX_WAITING_CLIENTS = 512
#: Maximum number of bytes that one call reads from a connection.
MAX_READ_BYTES = 64 * 1024
#: Timeout of `connect`, and of each send and each receive of a guard before the run has started.
REQUEST_TIMEOUT_S = 10.0
#: The number of open files in a request: standard input, output and error.
FILE_COUNT = 3


class Refusal(Exception):
    """The server refuses this request. The client then starts a cold run: a new ansible-playbook process."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The run that a client requests."""

    cwd: bytes
    argv: list[str]
    env: dict[bytes, bytes] = field(repr=False)
    file_descriptors: list[int]  #: descriptors of the run's standard input, output and error


# --- probes -----------------------------------------------------------------------------------------------------------


def connect(path: str) -> socket.socket:
    """Connect to the socket at `path`, which may be longer than the 108 bytes of a socket's address."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(REQUEST_TIMEOUT_S)
    try:
        call_with_short_path(path, connection.connect)
    except OSError:
        connection.close()
        raise
    return connection


def is_answering(path: str, timeout_s: float) -> bool:
    """Send an empty request. Return True if a guard refuses it, which proves that the server can fork guards."""
    try:
        with connect(path) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(struct.pack(SIZE_FORMAT, 0))
            return connection.recv(1) == REFUSED
    except OSError:
        return False


# --- server -----------------------------------------------------------------------------------------------------------


def listen(path: str) -> socket.socket:
    """Listen on a new socket at `path`, to which only the agent's user and root can connect."""
    listener = socket.socket(socket.AF_UNIX)
    previous_umask = os.umask(0o177)  # the socket must have a private mode from the start
    try:
        call_with_short_path(path, listener.bind)
    finally:
        os.umask(previous_umask)
    listener.listen(MAX_WAITING_CLIENTS)
    return listener


def receive_request(connection: socket.socket) -> Request:
    """Read a request. Raises Refusal when the request is not valid, OSError when the connection fails.

    The Refusal of an invalid request has no text. The guard logs only a Refusal that has a text. So it does not log the
    empty requests of `is_answering`.
    """
    connection.settimeout(REQUEST_TIMEOUT_S)
    _require_same_user(connection)
    message, file_descriptors, _, _ = socket.recv_fds(connection, MAX_READ_BYTES, FILE_COUNT)
    if len(message) < SIZE_BYTES:
        raise Refusal("")
    (size,) = struct.unpack(SIZE_FORMAT, message[:SIZE_BYTES])
    if not 0 < size <= MAX_REQUEST_BYTES:
        raise Refusal("")
    body = message[SIZE_BYTES:]
    while len(body) < size:
        if not (data := connection.recv(MAX_READ_BYTES)):
            raise Refusal("")
        body += data
    cwd, argument_count_text, *arguments_and_entries = body.split(b"\0")
    if len(file_descriptors) != FILE_COUNT:
        raise Refusal("")
    argument_count = int(argument_count_text)
    arguments = arguments_and_entries[:argument_count]
    environment_entries = [entry.partition(b"=") for entry in arguments_and_entries[argument_count:]]
    return Request(
        cwd=cwd,
        argv=[os.fsdecode(argument) for argument in arguments],
        env={name: value for name, _, value in environment_entries},
        file_descriptors=file_descriptors,
    )


def accept_request_and_wait_for_start_message(connection: socket.socket) -> bool:
    """Send ACCEPTED to the client. Return True if the client answers GO: the caller then starts the run."""
    connection.sendall(ACCEPTED)
    if connection.recv(1) != GO:
        return False
    connection.settimeout(None)
    return True


def send_exit_code(connection: socket.socket, code: int) -> None:
    """Report the end of a run and its exit code."""
    connection.sendall(ENDED + struct.pack(EXIT_CODE_FORMAT, code))


def call_with_short_path(path: str, function: Callable[[str], None]) -> None:
    """Call `function` with a short path of the file at `path`, because a socket's address has at most 108 bytes.

    The short path names the file's folder by a file descriptor.
    """
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        function(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def _require_same_user(connection: socket.socket) -> None:
    """Raise Refusal if the client belongs to another user. The mode of the socket does not keep root out."""
    credentials_format = "3i"  # the structure `ucred` of unix(7): process id, user id, group id
    credentials_bytes = struct.calcsize(credentials_format)
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials_bytes)
    _pid, uid, _gid = struct.unpack(credentials_format, credentials)
    if uid != os.geteuid():
        raise Refusal("the request is from another user")
