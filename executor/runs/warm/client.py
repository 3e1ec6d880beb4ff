"""What a warm run looks like from the agent: `client.py PLAYBOOK_SOCKET MODULE_SOCKET KEEPER COMMAND …`.

Hands its command line, environment, folder and output to the playbook server, waits, and ends with the run's exit
code. It is to a warm run what the keeper is to a cold one: standard input is the lifeline, and when its other end is
gone, or TERM comes, the server's side ends the tree. When the server does not take the run, it becomes the keeper of
the command: a cold run, and nothing is lost.

A script for `python -I -S`, of few modules, and small ones: its start is paid for in every run (10 ms, 5 MiB).
"""

import _signal  # type: ignore[import-not-found]  # built in; `signal` itself would cost as much as all the rest
import _socket
import posix
import select
import sys

ACCEPTED, ENDED = b"A", b"E"
GO = b"G"
#: Exit code when the server's side vanished: as that of a process that was killed.
LOST = 137
#: How long the server may take to say whether it takes the run.
ANSWER_S = 10.0
#: How long its side may take to end a tree that was told to.
END_S = 5.0
#: 108 bytes are a socket's longest name; a folder's may be longer.
O_PATH = 0o10000000
LIFELINE = 0


def main() -> None:
    server, modules, keeper, *command = (argument.encode("utf-8", "surrogateescape") for argument in sys.argv[1:])
    if posix.getsid(0) != posix.getpid():
        posix.setsid()  # what a terminal sends to the agent's group is not for us
    offer_to_oom_killer()
    try:
        connection = ask(server, [modules, *command])
    except OSError:
        connection = None
    if connection is None:
        python = sys.executable.encode("utf-8", "surrogateescape")
        posix.execve(python, [python, b"-I", b"-S", keeper, b"keep", *command], posix.environ)
    posix._exit(follow(connection))


def offer_to_oom_killer() -> None:
    """As `process_tree` does it, whose import would cost more than all of this."""
    try:
        fd = posix.open("/proc/self/oom_score_adj", posix.O_WRONLY)
        posix.write(fd, b"500")
        posix.close(fd)
    except OSError:  # it stays as it is
        pass


def ask(server: bytes, arguments: list[bytes]) -> "_socket.socket | None":
    """Return the connection over which the run now goes on, None when it does not."""
    connection = connect(server)
    entries = [name + b"=" + value for name, value in posix.environ.items()]
    body = b"\0".join([posix.getcwdb(), b"%d" % len(arguments), *arguments, *entries])
    message = len(body).to_bytes(4, "big") + body
    nothing = posix.open("/dev/null", posix.O_RDONLY)
    files = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (nothing, 1, 2))
    sent = connection.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, files)])
    while sent < len(message):
        sent += connection.send(message[sent:])
    if connection.recv(1) != ACCEPTED:
        return None
    # From here on TERM is the run's: the server's side ends the tree, then tells us.
    _signal.signal(_signal.SIGTERM, lambda *_: let_go(connection))
    connection.settimeout(None)
    connection.send(GO)
    return connection


def let_go(connection: "_socket.socket") -> None:
    """Let the server's side end the run, and soon."""
    try:
        connection.shutdown(_socket.SHUT_WR)
        connection.settimeout(END_S)
    except OSError:  # it has ended
        pass


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
    poll = select.poll()
    for fd in (LIFELINE, connection.fileno()):
        poll.register(fd, select.POLLIN)
    if connection.fileno() not in [fd for fd, _ in poll.poll()]:
        let_go(connection)
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
