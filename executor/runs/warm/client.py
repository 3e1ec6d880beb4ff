"""The client of a warm run: `client.py PLAYBOOK_SOCKET MODULE_SOCKET GUARD_SCRIPT COMMAND …`.

Sends its command line, environment, folder and output to the playbook server, waits, and exits with the run's exit
code. It takes the place that the guard has in a cold run: standard input is a pipe from the agent, and when the agent
closes it or TERM arrives, the guard in the server ends the process tree. If the server refuses the run, the
client becomes the guard of a cold run.

A script for `python -I -S` that imports few and small modules: each run pays for its start (10 ms, 5 MiB).
"""

import _signal  # type: ignore[import-not-found]  # built in; `signal` itself would cost as much as all other imports
import _socket
import posix
import select
import sys

ACCEPTED, ENDED = b"A", b"E"
GO = b"G"
#: Exit code if the guard in the server vanished: that of a killed process.
KILLED = 137
#: How long the server may take to accept or refuse the run.
ANSWER_TIMEOUT_S = 10.0
#: How long the guard may take to end the process tree.
END_TIMEOUT_S = 5.0
O_PATH = 0o10000000
AGENT_FD = 0


def main() -> None:
    server, modules, guard_script, *command = (arg.encode("utf-8", "surrogateescape") for arg in sys.argv[1:])
    if posix.getsid(0) != posix.getpid():
        posix.setsid()  # a terminal's signals to the agent's process group must not reach the run
    prefer_this_process_for_oom_kill()
    try:
        connection = ask(server, [modules, *command])
    except OSError:
        connection = None
    if connection is None:
        python = sys.executable.encode("utf-8", "surrogateescape")
        posix.execve(python, [python, b"-I", b"-S", guard_script, b"guard", *command], posix.environ)
    posix._exit(wait(connection))


def prefer_this_process_for_oom_kill() -> None:
    """Do the same as `process_tree`, whose import would take longer than this whole script."""
    try:
        fd = posix.open("/proc/self/oom_score_adj", posix.O_WRONLY)
        posix.write(fd, b"500")
        posix.close(fd)
    except OSError:  # the score stays as it is
        pass


def ask(server: bytes, arguments: list[bytes]) -> "_socket.socket | None":
    """Send the request; return the connection if the server has accepted it, None if not."""
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
    # From here on TERM is meant for the run: the guard ends the process tree and reports the end to us.
    _signal.signal(_signal.SIGTERM, lambda *_: request_end(connection))
    connection.settimeout(None)
    connection.send(GO)
    return connection


def request_end(connection: "_socket.socket") -> None:
    """Ask the guard to end the run."""
    try:
        connection.shutdown(_socket.SHUT_WR)
        connection.settimeout(END_TIMEOUT_S)
    except OSError:  # the run has ended
        pass


def connect(path: bytes) -> "_socket.socket":
    """Connect to a socket by a descriptor of its folder: a path may be longer than the 108 bytes of an address."""
    folder, _, name = path.rpartition(b"/")
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.settimeout(ANSWER_TIMEOUT_S)
    fd = posix.open(folder, O_PATH)
    try:
        connection.connect(b"/proc/self/fd/%d/%s" % (fd, name))
    finally:
        posix.close(fd)
    return connection


def wait(connection: "_socket.socket") -> int:
    """Wait for the end of the run, or for the agent to close its pipe; return the run's exit code."""
    poll = select.poll()
    for fd in (AGENT_FD, connection.fileno()):
        poll.register(fd, select.POLLIN)
    if connection.fileno() not in [fd for fd, _ in poll.poll()]:
        request_end(connection)
    answer = b""
    while len(answer) < 5:
        try:
            data = connection.recv(5)
        except OSError:
            return KILLED
        if not data:
            return KILLED
        answer += data
    return int.from_bytes(answer[1:], "big") if answer[:1] == ENDED else KILLED


main()
