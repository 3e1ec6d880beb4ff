"""Starts one warm run and waits for it: `client.py PLAYBOOK_SOCKET MODULE_SOCKET GUARD_SCRIPT COMMAND …`.

A warm run is forked by a server that has already imported Ansible; a cold run is a new ansible-playbook process. This
script sends its command line, environment, working directory and output files to the playbook server, waits, and exits
with the run's exit code. For the agent it is what the guard is for a cold run: standard input is a pipe from the agent,
and when the agent closes the pipe or sends TERM, the guard that the server has forked ends the run's process tree. If
the server refuses the run, this script becomes the guard of a cold run.

Every warm run starts this script (10 ms, 5 MiB), so it runs with `python -I -S` and imports few and small modules.
"""

import _signal  # type: ignore[import-not-found]  # built in; importing `signal` takes as long as all other imports
import _socket
import posix
import select
import sys

#: Messages of `protocol`.
ACCEPTED, ENDED, GO = b"A", b"E", b"G"
#: Exit code if the guard was killed: 128 plus the number of KILL, as in a shell.
KILLED = 137
#: How long the server may take to accept or refuse the run.
ANSWER_TIMEOUT_S = 10.0
#: How long the guard may take to end the process tree.
END_TIMEOUT_S = 5.0
O_PATH = 0o10000000
#: Standard input, the pipe from the agent.
AGENT_FD = 0


def main() -> None:
    arguments = [arg.encode("utf-8", "surrogateescape") for arg in sys.argv[1:]]
    playbook_socket, module_socket, guard_script, *command = arguments
    if posix.getsid(0) != posix.getpid():
        posix.setsid()  # so that a terminal's signals to the agent's process group do not reach the run
    prefer_this_process_for_oom_kill()
    try:
        connection = request_run(playbook_socket, [module_socket, *command])
    except OSError:
        connection = None
    if connection is None:
        python = sys.executable.encode("utf-8", "surrogateescape")
        posix.execve(python, [python, b"-I", b"-S", guard_script, b"guard", *command], posix.environ)
    posix._exit(wait(connection))


def prefer_this_process_for_oom_kill() -> None:
    """Do what `process_tree.offer_to_oom_killer` does, whose import would take longer than this whole script."""
    try:
        fd = posix.open("/proc/self/oom_score_adj", posix.O_WRONLY)
        posix.write(fd, b"500")
        posix.close(fd)
    except OSError:  # the kernel does not allow it: the score is not changed
        pass


def request_run(playbook_socket: bytes, arguments: list[bytes]) -> "_socket.socket | None":
    """Send the request. Return the connection if the server has accepted the run, None if it has refused."""
    connection = connect(playbook_socket)
    entries = [name + b"=" + value for name, value in posix.environ.items()]
    body = b"\0".join([posix.getcwdb(), b"%d" % len(arguments), *arguments, *entries])
    message = len(body).to_bytes(4, "big") + body
    empty_input = posix.open("/dev/null", posix.O_RDONLY)
    files = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (empty_input, 1, 2))
    sent = connection.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, files)])
    while sent < len(message):
        sent += connection.send(message[sent:])
    if connection.recv(1) != ACCEPTED:
        return None
    # A TERM that arrives from now on ends the run: the guard ends the process tree and then sends the exit code.
    _signal.signal(_signal.SIGTERM, lambda *_: request_end(connection))
    connection.settimeout(None)
    connection.send(GO)
    return connection


def request_end(connection: "_socket.socket") -> None:
    """Ask the guard to end the run, by closing our direction of the connection."""
    try:
        connection.shutdown(_socket.SHUT_WR)
        connection.settimeout(END_TIMEOUT_S)
    except OSError:  # the run has already ended
        pass


def connect(path: bytes) -> "_socket.socket":
    """Connect to a socket through a descriptor of its folder: its path may exceed the 108 bytes of an address."""
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
    """Wait for the end of the run and return its exit code. End the run when the agent closes its pipe."""
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
