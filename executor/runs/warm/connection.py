"""Makes a warm run execute the modules of community.proxmox in the module server, not each in a new Python process.

A warm run is a fork of the playbook server, which has already imported Ansible. The warm run calls `install`, which
wraps a method of Ansible's local connection plugin. A connection plugin of our own is not used, because it would need
another name, and this name would appear in every event.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable
from typing import Any

from executor.runs.warm import patches, payloads, protocol
from executor.runs.warm.protocol import Request

#: Text near the beginning of each payload. A payload is the Python script that Ansible generates to run a module.
WRAPPER = b"_ANSIBALLZ_WRAPPER = True"
#: WRAPPER is searched only in this many bytes at the beginning.
HEAD_BYTES = 2048
#: Text that only the payload of a module of community.proxmox contains.
MODULE = f"module_fqn='{payloads.MODULES}".encode()
#: The words at the end of each shell command that ansible-core up to 2.20 runs.
SLEEP_SUFFIX = ["&&", "sleep", "0"]
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
Outcome = tuple[int, bytes, bytes]  # exit code, output, error output


def install(socket: str) -> None:
    """Make Ansible's local connection in this process use the module server at `socket`, if the server accepts."""
    patches.EXEC_COMMAND.replace(_wrapped(patches.EXEC_COMMAND.get(), socket))


def _wrapped(original: Callable[..., Outcome], socket: str) -> Callable[..., Outcome]:
    """Return a method that uses the module server if that is possible, and else calls `original`."""

    def exec_command(self: Any, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> Outcome:
        if in_data and WRAPPER in in_data[:HEAD_BYTES] and MODULE in in_data and self.become is None:
            outcome = _run_in_server(socket, cmd, in_data, self.cwd or os.getcwd())
            if outcome is not None:
                return outcome
        return original(self, cmd, in_data=in_data, sudoable=sudoable)

    return exec_command


def _run_in_server(socket: str, cmd: str, payload: bytes, cwd: str) -> Outcome | None:
    """Run a payload in the module server with the variables in `cmd`, the shell command that would run it.

    Return None if the server did not start the payload.
    """
    parsed = read_command(cmd)
    if parsed is None:
        return None
    interpreter, variables = parsed
    env = dict(os.environb) | {os.fsencode(name): os.fsencode(value) for name, value in variables.items()}
    with contextlib.ExitStack() as stack:
        files = [_memory_file(stack, name) for name in ("payload", "output", "error")]
        with open(files[0], "wb", closefd=False) as file:
            file.write(payload)
        request = Request(cwd=os.fsencode(cwd), argv=[interpreter], env=env, files=files)
        try:
            connection = stack.enter_context(protocol.connect(socket))
            if protocol.send_request(connection, request):
                return None
        except OSError:
            return None
        code = protocol.receive_code(connection)
        return code, _content(files[1]), _content(files[2])


def read_command(cmd: str) -> tuple[str, dict[str, str]] | None:
    """Return the interpreter and the environment variables in a shell command of the form `/bin/sh -c 'A=1 python'`.

    With pipelining, Ansible runs each module with such a command. Return None for a command of another form. The parts
    are joined again and compared with the command, so that a shell cannot read the command in another way.
    """
    try:
        shell, option, line = shlex.split(cmd)
        words = shlex.split(line)
    except ValueError:
        return None
    end = SLEEP_SUFFIX if words[-3:] == SLEEP_SUFFIX else []
    *assignments, interpreter = words[: len(words) - len(end)] or [""]
    if (shell, option) != ("/bin/sh", "-c") or not interpreter:
        return None
    if not all(_ASSIGNMENT.match(word) for word in assignments):
        return None
    variables = dict(word.split("=", 1) for word in assignments)
    assembled = [f"{name}={shlex.quote(value)}" for name, value in variables.items()] + [shlex.quote(interpreter)]
    return (interpreter, variables) if " ".join([*assembled, *end]) == line.strip() else None


def _memory_file(stack: contextlib.ExitStack, name: str) -> int:
    fd = os.memfd_create(name)
    stack.callback(os.close, fd)
    return fd


def _content(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", closefd=False) as file:
        return file.read()
