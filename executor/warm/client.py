"""What a warm run looks like from its keeper: `client.py PLAYBOOK_SOCKET MODULE_SOCKET COMMAND …`.

Hands its command line, environment, folder and standard files to the playbook server, waits, and ends with the run's
exit code. When the server does not take the run, it becomes the command itself: a cold run, and nothing is lost.

A script for `python -I -S`, of built-in modules only: its start is paid for in every run (10 ms, 5 MiB).
"""

import _signal  # type: ignore[import-not-found]  # built in; `signal` itself would cost as much as all the rest
import _socket
import posix
import sys

ACCEPTED, ENDED = b"A", b"E"
GO = b"G"
#: Exit code when the server's side vanished: as that of a process that was killed.
LOST = 137
#: How long the server may take to say whether it takes the run.
ANSWER_S = 10.0
#: 108 bytes are a socket's longest name; a folder's may be longer.
O_PATH = 0o10000000


def main() -> None:
    server, modules, *command = (argument.encode("utf-8", "surrogateescape") for argument in sys.argv[1:])
    try:
        connection = ask(server, [modules, *command])
    except OSError:
        connection = None
    if connection is None:
        posix.execve(command[0], command, posix.environ)
    posix._exit(follow(connection))


def ask(server: bytes, arguments: list[bytes]) -> "_socket.socket | None":
    """Return the connection over which the run now goes on, None when it does not."""
    connection = connect(server)
    entries = [name + b"=" + value for name, value in posix.environ.items()]
    body = b"\0".join([posix.getcwdb(), b"%d" % len(arguments), *arguments, *entries])
    message = len(body).to_bytes(4, "big") + body
    files = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 1, 2))
    sent = connection.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, files)])
    while sent < len(message):
        sent += connection.send(message[sent:])
    if connection.recv(1) != ACCEPTED:
        return None
    # From here on TERM is the run's: the server's side ends the tree, then tells us.
    _signal.signal(_signal.SIGTERM, lambda *_: connection.shutdown(_socket.SHUT_WR))
    connection.settimeout(None)
    connection.send(GO)
    return connection


def connect(path: bytes) -> "_socket.socket":
    """Connect to a socket by its folder's descriptor."""
    folder, _, name = path.rpartition(b"/")
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.settimeout(ANSWER_S)
    fd = posix.open(folder, O_PATH)
    try:
        connection.connect(b"/proc/self/fd/%d/%s" % (fd, name))
    finally:
        posix.close(fd)
    return connection


def follow(connection: "_socket.socket") -> int:
    """Wait for the run's end; return its exit code."""
    answer = b""
    while len(answer) < 5:
        try:
            data = connection.recv(5)
        except OSError:
            return LOST
        if not data:
            return LOST
        answer += data
    return int.from_bytes(answer[1:], "big") if answer[:1] == ENDED else LOST


main()
