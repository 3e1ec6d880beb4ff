"""Runs modules of community.proxmox in forks of this server, which has already imported the modules' dependencies.

Command: `python -P -m executor.runs.warm.module_server SOCKET SERVER_FOLDER`. To run a module, Ansible generates a
Python script, the module script. It contains a payload: a zip file of the module and the files that the module imports.
A fork of the server compares each file of the payload with the installed file, and then runs the installed code. It
refuses a payload with other code, and the modules of all other collections.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import re
import sys
import tempfile
import types
from typing import Any

from executor.runs.warm import forkserver, patches, payloads
from executor.runs.warm.compatibility import why_release_unsupported
from executor.runs.warm.protocol import Refusal, Request

#: Python modules that are imported before the fork. A module that the installed ansible-core lacks is skipped.
IMPORTS = (
    "ansible.module_utils.basic",
    "ansible.module_utils.urls",
    "ansible.module_utils._internal._ansiballz._loader",
    "ansible.module_utils._internal._json._profiles._module_legacy_c2m",
    "ansible.module_utils._internal._json._profiles._module_legacy_m2c",
    "ansible.module_utils._internal._json._profiles._module_modern_c2m",
    "ansible.module_utils._internal._json._profiles._module_modern_m2c",
    "ansible.module_utils.common.arg_spec",
    "ansible.module_utils.distro",
    "ansible.module_utils.compat.selinux",
    "ansible_collections.community.proxmox.plugins.module_utils.proxmox",
    *("proxmoxer", "proxmoxer.backends.https", "requests", "urllib3", "http.cookiejar", "encodings.idna", "zipfile"),
    *("runpy", "shlex", "syslog", "locale", "traceback", "datetime", "random", "pwd", "grp", "platform", "socket"),
)
#: The beginning of the last line of a module script. This line calls the script's main function.
MAIN_CALL = b"_ansiballz_main("
#: Matches the name of a module of community.proxmox.
MODULE_NAME = re.compile(re.escape(payloads.MODULE_PREFIX) + r"\w+")
#: The names of the arguments with which a module script must call its main function. Another release of Ansible may
#: generate a script with other arguments. Such a script is refused.
MAIN_ARGUMENTS = {
    *("zip_data", "ansible_module", "module_fqn", "params", "profile", "date_time", "extensions", "rlimit_nofile"),
}


class ModuleRunner:
    """Checks requests to run modules, and runs the modules. A server has one instance."""

    def __init__(self, server_folder: str) -> None:
        self._payload_store = payloads.store_folder(server_folder)
        self._main_arguments: dict[str, Any] = {}  #: the arguments in the module script that `check` has accepted
        for name in IMPORTS:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)

    def check(self, request: Request) -> None:
        """Raise Refusal unless the request is to run a module of community.proxmox with the installed code."""
        if request.argv != [sys.executable]:
            raise Refusal("the module needs another interpreter")
        standard_input = request.files[0]
        self._main_arguments = arguments = read_main_arguments(_read_file(standard_input))
        module, zip_data = arguments["module_fqn"], arguments["zip_data"]
        if not MODULE_NAME.fullmatch(module):
            raise Refusal("not a module of community.proxmox")
        # A saved payload needs no comparison, because it was compared before it was saved.
        was_compared = payloads.is_saved_and_current(self._payload_store, module, zip_data)
        has_installed_code = was_compared or bool(payloads.find_installed_files(zip_data))
        if not has_installed_code:
            raise Refusal("the payload differs from the installed files")
        if arguments["extensions"] or arguments["rlimit_nofile"]:
            raise Refusal("the module script has extensions or a limit of open files")

    def run_module(self, _request: Request) -> int:
        """Run in this process the module that `check` has accepted. Return its exit code."""
        arguments = self._main_arguments
        tempfile.tempdir = None  # so that `tempfile` reads the TMPDIR of this request
        sys.argv = [""]
        sys.modules["__main__"] = types.ModuleType("__main__")  # an empty module, as in a new interpreter
        try:
            patches.RUN_MODULE.get_value()(
                json_params=arguments["params"].encode(),
                profile=arguments["profile"],
                module_fqn=arguments["module_fqn"],
                modlib_path="",  # used only by scripts for coverage or debuggers, which `check` refuses
                extensions={},
            )
        except SystemExit as system_exit:
            return forkserver.exit_code(system_exit)
        return 0


def read_main_arguments(module_script: bytes) -> dict[str, Any]:
    """Return the arguments with which the last line of a module script calls the script's main function.

    Raises Refusal when the script has another form.
    """
    try:
        last_line = module_script[module_script.rindex(MAIN_CALL) :].decode()
        call_statement: Any = ast.parse(last_line, mode="exec").body[0]
        arguments = {keyword.arg: keyword.value for keyword in call_statement.value.keywords}
        if set(arguments) != MAIN_ARGUMENTS:
            raise Refusal("the module script has other arguments than expected")
        # The value of `date_time` is a call and not a literal. It is not needed.
        return {name: ast.literal_eval(value) for name, value in arguments.items() if name != "date_time"}
    except (ValueError, SyntaxError, AttributeError, IndexError) as error:
        raise Refusal("not a module script of Ansible") from error


def _read_file(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", closefd=False) as file:
        return file.read()


def main(socket_path: str, server_folder: str) -> None:
    """Import the dependencies of the modules, then accept clients until the agent ends."""
    from ansible.release import __version__  # noqa: PLC0415  the agent imports this module, but not Ansible

    if reason := why_release_unsupported(__version__):
        raise SystemExit(reason)
    runner = ModuleRunner(server_folder)
    forkserver.serve(socket_path, runner.check, runner.run_module)


if __name__ == "__main__":
    main(*sys.argv[1:])
