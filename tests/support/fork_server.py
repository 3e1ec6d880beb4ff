"""Starts `smith` commands as forks of a process that has imported everything: 0.1 CPU seconds each instead of 0.6.

Each command is a process of its own, with its own arguments, environment, working directory, standard streams, umask,
session and exit code. Only the imports are shared. A command whose environment changes what the interpreter reads at
its start (locale, `PYTHON…`, time zone) gets a new interpreter. Tests of an interpreter's start do not use this module.

The server is `python -m support.fork_server FD`; it ends when the other end of FD closes.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

#: Prefixes of the variables that the interpreter or the C library reads only when a process starts.
READ_AT_START = ("PYTHON", "LC_", "LANG", "TZ", "LD_")
#: Modules that the server does not import: the entry point of the command, which each fork executes; the programs of
#: warm runs, which need Ansible; and the migrations, which need Alembic's context.
NOT_IMPORTED = ("executor.__main__", "executor.runs.warm.", "executor.database.migrations.")
#: Longer than any command's arguments and environment.
MESSAGE_BYTES = 128 * 1024
STREAMS = 3
#: CPU seconds of the commands that have ended. Their parent is the server, so that this process does not count them.
used_cpu_s = 0.0


# --- the test's side ------------------------------------------------------------------------------------------------


class ForkedCommand:
    """A running command: the part of `subprocess.Popen` that tests use."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code, negative after a signal. Raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"smith (process {self.pid})", timeout or 0)
            self.returncode = self._read_end()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, None while the command runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read_end(self) -> int:
        global used_cpu_s  # noqa: PLW0603  changed here only
        with self._connection:
            message = self._connection.recv(MESSAGE_BYTES)
        if not message:
            raise RuntimeError("the fork server has ended")
        ending = json.loads(message)
        used_cpu_s += ending["cpu_s"]
        return int(ending["code"])


class ForkServer:
    """The server process, and the connection over which it gets the requests to start commands."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        self._lock = threading.Lock()
        self._control, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with server_end:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.fork_server", str(server_end.fileno())],
                pass_fds=[server_end.fileno()],
                cwd=Path(__file__).parents[1],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        atexit.register(self.stop)

    def start(self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path, streams: list[int]) -> ForkedCommand:
        """Start `smith` with these arguments and standard streams."""
        request = {"arguments": arguments, "env": dict(env), "cwd": str(cwd), "umask": _umask()}
        test_end, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with server_end, self._lock:
            socket.send_fds(self._control, [json.dumps(request).encode()], [*streams, server_end.fileno()])
        answer = test_end.recv(MESSAGE_BYTES)
        if not answer:
            raise RuntimeError("the fork server has ended")
        return ForkedCommand(test_end, json.loads(answer)["pid"])

    def has_same_start_variables(self, env: Mapping[str, str]) -> bool:
        """Return whether the variables that are read at the start are the same in `env` as at the server's start."""
        return _read_at_start(env) == _read_at_start(self.environment)

    def stop(self) -> None:
        """End the server. Its commands are not ended."""
        self._control.close()
        self._process.wait()


def run(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    stdin: str | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a `smith` command to its end and capture its output. Raises TimeoutExpired, after killing the command."""
    if not server().has_same_start_variables(env):
        return run_new_interpreter(arguments, env=env, cwd=cwd, stdin=stdin, timeout=timeout)
    with contextlib.ExitStack() as stack:
        input_file = stack.enter_context(_input(stdin))
        output, output_end = _pipe(stack)
        errors, errors_end = _pipe(stack)
        command = server().start(arguments, env, cwd, [input_file.fileno(), output_end.fileno(), errors_end.fileno()])
        output_end.close()
        errors_end.close()
        try:
            contents = _read_both(output, errors, timeout)
            code = command.wait(timeout)
        except subprocess.TimeoutExpired:
            command.kill()
            raise
    texts = [io.TextIOWrapper(io.BytesIO(part), encoding="utf-8").read() for part in contents]
    return subprocess.CompletedProcess(["smith", *arguments], code, *texts)


def run_new_interpreter(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    stdin: str | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Do the same as `run`, but in a new interpreter."""
    stdin_argument: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    command = [sys.executable, "-m", "executor", *arguments]
    return subprocess.run(
        command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False, **stdin_argument
    )


@functools.cache
def server() -> ForkServer:
    """Return the server of this process. The first call starts it."""
    return ForkServer()


def _read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(READ_AT_START)}


def _umask() -> int:
    """Return this process's umask. `os.umask` would change it for a moment, in which a thread may create a file."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)


def _input(text: str | None) -> Any:
    if text is None:
        return open(os.devnull, "rb")
    file = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
    file.write(text.encode())
    file.seek(0)
    return file


def _pipe(stack: contextlib.ExitStack) -> tuple[Any, Any]:
    reader, writer = os.pipe()
    return stack.enter_context(open(reader, "rb", buffering=0)), stack.enter_context(open(writer, "wb"))


def _read_both(output: Any, errors: Any, timeout: float | None) -> list[bytes]:
    """Read both streams to their ends. Raises TimeoutExpired."""
    deadline = None if timeout is None else time.monotonic() + timeout
    contents: dict[Any, bytes] = {output: b"", errors: b""}
    with selectors.DefaultSelector() as selector:
        for stream in contents:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("smith", timeout or 0)
            for key, _ in selector.select(1.0):
                if data := key.fileobj.read(65536):  # type: ignore[union-attr]
                    contents[key.fileobj] += data
                else:
                    selector.unregister(key.fileobj)
    return list(contents.values())


# --- the server -----------------------------------------------------------------------------------------------------


def main(control_fd: int) -> None:
    """Import all modules, then fork a command for each request, until the test process closes the connection."""
    _import_all()
    gc.collect()
    gc.freeze()  # forks share these pages as long as no process writes to them
    control = socket.socket(fileno=control_fd)
    wakeup, wakeup_end = socket.socketpair()
    for end in (wakeup, wakeup_end):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup_end.fileno())
    connections: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([control, wakeup], [], [])
        if control in ready:
            message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, STREAMS + 1)
            if not message:
                os._exit(0)
            _fork(json.loads(message), descriptors, connections)
        with contextlib.suppress(BlockingIOError):
            wakeup.recv(1024)
        _report_ended(connections)


def _import_all() -> None:
    package = importlib.import_module("executor")
    for module in pkgutil.walk_packages(package.__path__, "executor."):
        if not module.name.startswith(NOT_IMPORTED):
            importlib.import_module(module.name)


def _fork(request: dict[str, Any], descriptors: list[int], connections: dict[int, socket.socket]) -> None:
    *streams, connection = descriptors
    pid = os.fork()
    if pid == 0:
        _become_command(request, streams)
    for fd in streams:
        os.close(fd)
    connections[pid] = socket.socket(fileno=connection)
    connections[pid].send(json.dumps({"pid": pid}).encode())


def _report_ended(connections: dict[int, socket.socket]) -> None:
    while connections:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid == 0:
            return
        ending = {"code": os.waitstatus_to_exitcode(status), "cpu_s": usage.ru_utime + usage.ru_stime}
        with connections.pop(pid) as connection, contextlib.suppress(OSError):  # the test may have closed it
            connection.send(json.dumps(ending).encode())


# --- the command ----------------------------------------------------------------------------------------------------


def _become_command(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """Do in this fork what `python -m executor ARGUMENTS` does, and exit."""
    code = 1
    try:
        _imitate_new_process(request, streams)
        sys.argv = ["smith", *request["arguments"]]
        sys.modules.pop("__main__")
        runpy.run_module("executor", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stop:
        code = _exit_code(stop)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        _exit_as_interpreter(code)


def _imitate_new_process(request: dict[str, Any], streams: list[int]) -> None:
    """Set streams, signals, folder, environment and umask as in a new process; close all other files."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.umask(request["umask"])
    for target, fd in enumerate(streams):
        os.dup2(fd, target)
    os.closerange(STREAMS, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    input_file, output, errors = (open(fd, mode, closefd=False) for fd, mode in enumerate(("rb", "wb", "wb")))  # noqa: SIM115
    sys.stdin = io.TextIOWrapper(input_file, encoding="utf-8")
    sys.stdout = io.TextIOWrapper(output, encoding="utf-8")
    sys.stderr = io.TextIOWrapper(errors, encoding="utf-8", errors="backslashreplace", line_buffering=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]


def _exit_code(stop: SystemExit) -> int:
    """Return the exit code with which the interpreter would end; print the message of SystemExit as it would."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    sys.stderr.write(f"{stop.code}\n")
    return 1


def _exit_as_interpreter(code: int) -> NoReturn:
    """Do what the interpreter does at its end, but do not destroy the modules: all forks share their memory."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]))
