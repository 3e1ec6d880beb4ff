"""Reads the Python script that Ansible generates to run a module, and the shell command that would run the script.

Ansible calls such a script a wrapper; we call it a module script. It contains a payload, which is a zip file of the
module and the files that the module imports, and the module's parameters. With pipelining, Ansible passes the script to
the standard input of a Python interpreter. A warm run, which is a fork of a server process that has already imported
Ansible, can call the module in its own process instead.
"""

from __future__ import annotations

import ast
import re
import shlex
import sys
from dataclasses import dataclass, field
from typing import Any

#: Text near the beginning of each module script.
MODULE_SCRIPT_TEXT = b"_ANSIBALLZ_WRAPPER = True"
#: Number of bytes at the beginning of the input in which MODULE_SCRIPT_TEXT is searched.
SEARCHED_BYTES = 2048
#: The beginning of the last line of a module script. This line calls the script's main function.
MAIN_CALL = b"_ansiballz_main("
#: The names of the arguments with which a module script must call its main function. Another release of Ansible may
#: generate a script with different arguments. For such a script, `read_module_call` returns None.
MAIN_ARGUMENTS = {
    *("zip_data", "ansible_module", "module_fqn", "params", "profile", "date_time", "extensions", "rlimit_nofile"),
}
#: The beginning of the full names of the modules of community.proxmox. Only these modules may be called in the process
#: of a warm run, because they only send requests to an API and start no process.
PROXMOX_MODULE_PREFIX = "ansible_collections.community.proxmox.plugins.modules."
#: Text that only the script of a module of community.proxmox contains.
PROXMOX_MODULE_TEXT = f"module_fqn='{PROXMOX_MODULE_PREFIX}".encode()
#: The words at the end of each shell command that ansible-core up to 2.20 runs.
SLEEP_SUFFIX = ["&&", "sleep", "0"]
_MODULE_NAME = re.compile(re.escape(PROXMOX_MODULE_PREFIX) + r"\w+")
#: Matches the beginning of a word that sets an environment variable, such as `LANG=C`.
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


@dataclass(frozen=True, kw_only=True)
class ModuleCall:
    """A module of community.proxmox that Ansible is about to run."""

    module: str  #: the full name, which begins with PROXMOX_MODULE_PREFIX
    zip_data: str | bytes = field(repr=False)  #: the payload in base64
    params: str = field(repr=False)  #: the parameters as JSON; they contain the login at Proxmox
    serialization_profile: str  #: the name of the format of parameters and result
    variables: dict[str, str] = field(repr=False)  #: environment variables that are set for this module only


def read_module_call(command: str, script: bytes) -> ModuleCall | None:
    """Return the module that a shell command would run with a module script as its standard input.

    Return None in each of these cases:

    - The command or the script has another form than expected, or the module is not in community.proxmox.
    - The command's interpreter is not the interpreter of this process.
    - Ansible is configured to run modules with coverage, with a debugger or with a limit of open files.
    """
    if MODULE_SCRIPT_TEXT not in script[:SEARCHED_BYTES] or PROXMOX_MODULE_TEXT not in script:
        return None
    interpreter_and_variables = read_command(command)
    arguments = read_main_arguments(script)
    if interpreter_and_variables is None or arguments is None:
        return None
    interpreter, variables = interpreter_and_variables
    is_supported = (
        interpreter == sys.executable
        and _MODULE_NAME.fullmatch(arguments["module_fqn"])
        and not arguments["extensions"]
        and not arguments["rlimit_nofile"]
    )
    if not is_supported:
        return None
    return ModuleCall(
        module=arguments["module_fqn"],
        zip_data=arguments["zip_data"],
        params=arguments["params"],
        serialization_profile=arguments["profile"],
        variables=variables,
    )


def read_command(command: str) -> tuple[str, dict[str, str]] | None:
    """Return the interpreter and the environment variables in a shell command of the form `/bin/sh -c 'A=1 python'`.

    With pipelining, Ansible runs each module with such a command. Return None for a command of another form. To prove
    that a shell would read the same variables, the function makes a command from the result, and compares it with the
    given command.
    """
    try:
        shell, option, line = shlex.split(command)
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


def read_main_arguments(script: bytes) -> dict[str, Any] | None:
    """Return the arguments with which the last line of a module script calls the script's main function.

    Return None when the script has another form.
    """
    try:
        last_line = script[script.rindex(MAIN_CALL) :].decode()
        call_statement: Any = ast.parse(last_line, mode="exec").body[0]
        arguments = {keyword.arg: keyword.value for keyword in call_statement.value.keywords}
        if set(arguments) != MAIN_ARGUMENTS:
            return None
        # The value of `date_time` is a call and not a literal. It is not needed.
        return {name: ast.literal_eval(value) for name, value in arguments.items() if name != "date_time"}
    except (ValueError, SyntaxError, AttributeError, IndexError):
        return None
