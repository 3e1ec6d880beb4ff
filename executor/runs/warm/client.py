"""Starts one warm run and waits for it: `client.py SOCKET GUARD_SCRIPT COMMAND …`.

A warm run is a fork of the playbook server, which has already imported Ansible. A cold run is a new ansible-playbook
process. A guard is a process that supervises one run and ends the run's process tree.

This script sends COMMAND and its own environment, working directory, standard output and standard error to the playbook
server. The server forks a guard, and the guard forks the run. Then this script waits for the end of the run and exits
with the run's exit code. The standard input of this script is a pipe from the agent. When the agent closes the pipe or
sends TERM, this script asks the guard to end the run. If the guard refuses the run, or the server does not answer, this
process executes GUARD_SCRIPT and becomes the guard of a cold run.

The agent starts this script for every warm run. The script needs only 10 ms and 5 MiB, because the agent starts it with
`python -I -S` and the script imports only a few small modules.
"""

import _signal  # type: ignore[import-not-found]  # built in; importing `signal` takes as long as all other imports
import _socket
import posix
import select
import sys

#: The messages between the guard and this script: the guard sends ACCEPTED, this script then sends GO, which starts the
#: run, and the guard sends ENDED at the end of the run. protocol.py defines the same values for the guard.
ACCEPTED, ENDED, GO = b"A", b"E", b"G"
#: The exit code of this script if the guard sends no exit code, because the guard was killed or needs longer than
#: END_TIMEOUT_S. The value is 128 plus the number of the signal KILL, as in a shell.
EXIT_CODE_AFTER_KILL = 137
#: The length of the last message of the guard: ENDED (1 byte) and the exit code (4 bytes).
END_MESSAGE_BYTES = 5
#: How long the server may take to accept the connection, and then the guard to accept or refuse the run.
ANSWER_TIMEOUT_S = 10.0
#: How long the guard may take to end the run's process tree.
END_TIMEOUT_S = 5.0
#: The flag O_PATH of Linux, which opens a folder only to use its descriptor in a path.
O_PATH = 0o10000000
#: The file descriptor of standard input, which is the pipe from the agent.
AGENT_FD = 0


def main() -> None:
    """Start the warm run and exit with its exit code. If no warm run starts, become the guard of a cold run."""
    arguments = [argument.encode("utf-8", "surrogateescape") for argument in sys.argv[1:]]
    server_socket, guard_script, *command = arguments
    if posix.getsid(0) != posix.getpid():
        posix.setsid()  # so that a terminal's signals to the agent's process group do not reach this process
    prefer_this_process_for_oom_kill()
    try:
        connection = request_run(server_socket, command)
    except OSError:
        connection = None
    if connection is None:
        python = sys.executable.encode("utf-8", "surrogateescape")
        # With the argument `guard`, GUARD_SCRIPT executes COMMAND in a child process and supervises it.
        posix.execve(python, [python, b"-I", b"-S", guard_script, b"guard", *command], posix.environ)
    posix._exit(wait_for_exit_code(connection))


def prefer_this_process_for_oom_kill() -> None:
    """Make the kernel's OOM killer kill this process rather than the agent.

    The module `process_tree` contains the same function, but its import would take longer than this whole script.
    """
    try:
        fd = posix.open("/proc/self/oom_score_adj", posix.O_WRONLY)
        posix.write(fd, b"500")  # the kernel first kills a process with a high score
        posix.close(fd)
    except OSError:  # the kernel does not allow this change
        pass


def request_run(server_socket: bytes, command: list[bytes]) -> "_socket.socket | None":
    """Request a run with this command. Return the connection if the guard accepts the request, else None."""
    connection = connect(server_socket)
    environment_entries = [name + b"=" + value for name, value in posix.environ.items()]
    body = b"\0".join([posix.getcwdb(), b"%d" % len(command), *command, *environment_entries])
    message = len(body).to_bytes(4, "big") + body  # the server reads the size of the body first
    empty_input = posix.open("/dev/null", posix.O_RDONLY)
    # The run's standard input, output and error, as C integers of 4 bytes.
    fds = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (empty_input, 1, 2))
    sent_bytes = connection.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])
    while sent_bytes < len(message):
        sent_bytes += connection.send(message[sent_bytes:])
    if connection.recv(1) != ACCEPTED:
        return None
    # From now on, a TERM makes the guard end the run's process tree. The guard then sends the exit code.
    _signal.signal(_signal.SIGTERM, lambda *_: request_end(connection))
    connection.settimeout(None)
    connection.send(GO)
    return connection


def request_end(connection: "_socket.socket") -> None:
    """Close this script's sending direction of the connection, which makes the guard end the run."""
    try:
        connection.shutdown(_socket.SHUT_WR)
        connection.settimeout(END_TIMEOUT_S)
    except OSError:  # the run has already ended
        pass


def connect(path: bytes) -> "_socket.socket":
    """Connect to the socket at `path`.

    The path may be longer than the 108 bytes of a socket's address. So it is shortened: a file descriptor in
    /proc/self/fd names the folder.
    """
    folder, _, name = path.rpartition(b"/")
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.settimeout(ANSWER_TIMEOUT_S)
    fd = posix.open(folder, O_PATH)
    try:
        connection.connect(b"/proc/self/fd/%d/%s" % (fd, name))
    finally:
        posix.close(fd)
    return connection


def wait_for_exit_code(connection: "_socket.socket") -> int:
    """Wait for the end of the run and return its exit code.

    If the agent closes its end of the pipe AGENT_FD meanwhile, ask the guard to end the run.
    """
    poll = select.poll()
    for fd in (AGENT_FD, connection.fileno()):
        poll.register(fd, select.POLLIN)
    ready_fds = [fd for fd, _ in poll.poll()]
    if connection.fileno() not in ready_fds:  # the agent has closed its pipe
        request_end(connection)
    message = b""
    while len(message) < END_MESSAGE_BYTES:
        try:
            data = connection.recv(END_MESSAGE_BYTES)
        except OSError:
            return EXIT_CODE_AFTER_KILL
        if not data:
            return EXIT_CODE_AFTER_KILL
        message += data
    if not message.startswith(ENDED):
        return EXIT_CODE_AFTER_KILL
    return int.from_bytes(message[len(ENDED) :], "big")


main()
