"""Makes a warm run execute the modules of community.proxmox in the module server, without new Python processes.

A warm run is a fork of the playbook server, which has already imported Ansible. The module server is a second process,
which has imported what the modules need and runs each module in a fork. The warm run calls `install`, which replaces a
method of Ansible's local connection plugin. A connection plugin of our own is not used, because it would need another
name, and this name would appear in every event.
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

#: Text near the beginning of each module script. A module script is the Python script that Ansible generates to run a
#: module.
MODULE_SCRIPT_TEXT = b"_ANSIBALLZ_WRAPPER = True"
#: MODULE_SCRIPT_TEXT is searched only in this many bytes at the beginning of the input.
SEARCHED_BYTES = 2048
#: Text that only the script of a module of community.proxmox contains.
PROXMOX_MODULE_TEXT = f"module_fqn='{payloads.MODULE_PREFIX}".encode()
#: The words at the end of each shell command that ansible-core up to 2.20 runs.
SLEEP_SUFFIX = ["&&", "sleep", "0"]
#: Matches the beginning of a word that sets an environment variable, such as `LANG=C`.
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
Outcome = tuple[int, bytes, bytes]  # exit code, output, error output


def install(socket_path: str) -> None:
    """Make Ansible's local connection in this process run modules in the module server at `socket_path`."""
    patches.EXEC_COMMAND.set_value(_wrap(patches.EXEC_COMMAND.get_value(), socket_path))


def _wrap(original: Callable[..., Outcome], socket_path: str) -> Callable[..., Outcome]:
    """Return a method that runs a module in the module server if possible, and otherwise calls `original`."""

    def exec_command(self: Any, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> Outcome:
        if in_data and _is_proxmox_module_script(in_data) and self.become is None:
            outcome = _run_in_server(socket_path, cmd, in_data, self.cwd or os.getcwd())
            if outcome is not None:
                return outcome
        return original(self, cmd, in_data=in_data, sudoable=sudoable)

    return exec_command


def _is_proxmox_module_script(data: bytes) -> bool:
    """True for the script of a module of community.proxmox."""
    return MODULE_SCRIPT_TEXT in data[:SEARCHED_BYTES] and PROXMOX_MODULE_TEXT in data


def _run_in_server(socket_path: str, cmd: str, module_script: bytes, cwd: str) -> Outcome | None:
    """Run a module script in the module server. Return None if the server did not start it.

    `cmd` is the shell command with which Ansible would run the script. It contains environment variables.
    """
    interpreter_and_variables = read_command(cmd)
    if interpreter_and_variables is None:
        return None
    interpreter, variables = interpreter_and_variables
    env = dict(os.environb) | {os.fsencode(name): os.fsencode(value) for name, value in variables.items()}
    with contextlib.ExitStack() as stack:
        files = [_make_memory_file(stack, name) for name in ("module_script", "output", "error")]
        script_fd, output_fd, error_fd = files
        with open(script_fd, "wb", closefd=False) as script_file:
            script_file.write(module_script)
        request = Request(cwd=os.fsencode(cwd), argv=[interpreter], env=env, files=files)
        try:
            connection = stack.enter_context(protocol.connect(socket_path))
            refusal = protocol.send_request(connection, request)
            if refusal:
                return None
        except OSError:
            return None
        code = protocol.receive_exit_code(connection)
        return code, _read_file(output_fd), _read_file(error_fd)


def read_command(cmd: str) -> tuple[str, dict[str, str]] | None:
    """Return the interpreter and the environment variables in a shell command of the form `/bin/sh -c 'A=1 python'`.

    With pipelining, Ansible runs each module with such a command. Return None for a command of another form. To prove
    that a shell would read the same variables, the command is made again from the result and compared.
    """
    try:
        shell, option, line = shlex.split(cmd)
        words = shlex.split(line)
    except ValueError:
        return None
    suffix = SLEEP_SUFFIX if words[-len(SLEEP_SUFFIX) :] == SLEEP_SUFFIX else []
    words_without_suffix = words[: len(words) - len(suffix)]
    *assignments, interpreter = words_without_suffix or [""]
    if (shell, option) != ("/bin/sh", "-c") or not interpreter:
        return None
    if not all(_ASSIGNMENT.match(word) for word in assignments):
        return None
    variables = dict(word.split("=", 1) for word in assignments)
    quoted_assignments = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    expected_line = " ".join([*quoted_assignments, shlex.quote(interpreter), *suffix])
    return (interpreter, variables) if line.strip() == expected_line else None


def _make_memory_file(stack: contextlib.ExitStack, name: str) -> int:
    """Return the descriptor of a new file in memory, which is closed at the end of `stack`."""
    fd = os.memfd_create(name)
    stack.callback(os.close, fd)
    return fd


def _read_file(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", closefd=False) as file:
        return file.read()
