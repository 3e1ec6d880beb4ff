"""Ansible's local connection, handing Proxmox's modules to the module server. Loaded inside warm playbook runs only.

The connection stays Ansible's own, with its name, its documentation and its options; one of its methods is wrapped.
A plugin of the same name could not be loaded beside it, and one of another name would show in every event.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable
from typing import Any

from executor.runs.warm import forkserver, patches, payloads
from executor.runs.warm.forkserver import Request

#: What the wrapper of a module's payload has near its beginning.
WRAPPER = b"_ANSIBALLZ_WRAPPER = True"
HEAD_BYTES = 2048
MODULE = f"module_fqn='{payloads.MODULES}".encode()
#: What ansible-core up to 2.20 lets each command end with.
NAP = ["&&", "sleep", "0"]
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
Outcome = tuple[int, bytes, bytes]


def install(socket: str) -> None:
    """Let the local connection of this process ask the module server at `socket` first."""
    patches.EXEC_COMMAND.replace(_wrapped(patches.EXEC_COMMAND.get(), socket))


def _wrapped(cold: Callable[..., Outcome], socket: str) -> Callable[..., Outcome]:
    def exec_command(self: Any, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> Outcome:
        if in_data and WRAPPER in in_data[:HEAD_BYTES] and MODULE in in_data and self.become is None:
            outcome = _run_warm(socket, cmd, in_data, self.cwd or os.getcwd())
            if outcome is not None:
                return outcome
        return cold(self, cmd, in_data=in_data, sudoable=sudoable)

    return exec_command


def _run_warm(socket: str, cmd: str, payload: bytes, cwd: str) -> Outcome | None:
    """Run a payload as `cmd` would; None when it was not begun, and is to be run the ordinary way."""
    understood = read_command(cmd)
    if understood is None:
        return None
    interpreter, assigned = understood
    env = dict(os.environb) | {os.fsencode(name): os.fsencode(value) for name, value in assigned.items()}
    with contextlib.ExitStack() as stack:
        files = [_memory_file(stack, name) for name in ("payload", "output", "error")]
        with open(files[0], "wb", closefd=False) as file:
            file.write(payload)
        request = Request(cwd=os.fsencode(cwd), argv=[interpreter], env=env, files=files)
        try:
            connection = stack.enter_context(forkserver.connect(socket))
            if forkserver.ask(connection, request):
                return None
        except OSError:
            return None
        code = forkserver.receive_code(connection)
        return code, _content(files[1]), _content(files[2])


def read_command(cmd: str) -> tuple[str, dict[str, str]] | None:
    """Return interpreter and variables of the shell command of a pipelined module, None when it is any other.

    It is taken apart, put together again and compared, so that nothing which a shell would read otherwise passes.
    """
    try:
        shell, option, line = shlex.split(cmd)
        words = shlex.split(line)
    except ValueError:
        return None
    end = NAP if words[-3:] == NAP else []
    *assignments, interpreter = words[: len(words) - len(end)] or [""]
    if (shell, option) != ("/bin/sh", "-c") or not interpreter:
        return None
    if not all(_ASSIGNMENT.match(word) for word in assignments):
        return None
    assigned = dict(word.split("=", 1) for word in assignments)
    again = [f"{name}={shlex.quote(value)}" for name, value in assigned.items()] + [shlex.quote(interpreter)]
    return (interpreter, assigned) if " ".join([*again, *end]) == line.strip() else None


def _memory_file(stack: contextlib.ExitStack, name: str) -> int:
    fd = os.memfd_create(name)
    stack.callback(os.close, fd)
    return fd


def _content(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", closefd=False) as file:
        return file.read()
