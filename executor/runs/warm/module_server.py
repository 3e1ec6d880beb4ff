"""Runs modules of community.proxmox in forks of this server, which has already imported the modules' dependencies.

Command: `python -P -m executor.runs.warm.module_server SOCKET SERVER_FOLDER`. A payload is the Python script that
Ansible generates to run a module. It contains the module's code as a zip file. A fork of the server compares each file
of the zip file with the installed file, and then runs the installed code. It refuses a payload that contains other
code, and every module of another collection.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import re
import sys
import tempfile
from typing import Any

from executor.runs.warm import forkserver, patches, payloads
from executor.runs.warm.compatibility import why_unsupported
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
#: The beginning of the last line of a payload. This line calls the payload's main function.
CALL = b"_ansiballz_main("
MODULE = re.compile(re.escape(payloads.MODULES) + r"\w+")
#: The arguments with which a payload must call its main function. A payload with other arguments, which another release
#: of Ansible may make, is refused.
ARGUMENTS = {
    *("zip_data", "ansible_module", "module_fqn", "params", "profile", "date_time", "extensions", "rlimit_nofile"),
}


class Modules:
    """Checks and runs modules. A server has one instance."""

    def __init__(self, server_folder: str) -> None:
        self._store = payloads.store_in(server_folder)
        self._arguments: dict[str, Any] = {}
        for name in IMPORTS:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)

    def check(self, request: Request) -> None:
        """Raise Refusal unless the request is a payload with the installed code of a module of community.proxmox."""
        if request.argv != [sys.executable]:
            raise Refusal("the module needs another interpreter")
        self._arguments = arguments = read_payload(_read(request.files[0]))
        module, zip_data = arguments["module_fqn"], arguments["zip_data"]
        if not MODULE.fullmatch(module):
            raise Refusal("not a module of community.proxmox")
        is_installed = payloads.is_of_known_sources(self._store, module, zip_data) or payloads.find_sources(zip_data)
        if arguments["extensions"] or arguments["rlimit_nofile"] or not is_installed:
            raise Refusal("the payload differs from the installed files")

    def work(self, _request: Request) -> int:
        """Run the module that `check` has accepted in this process; return its exit code."""
        arguments = self._arguments
        tempfile.tempdir = None
        sys.argv = [""]
        sys.modules["__main__"] = type(sys)("__main__")
        try:
            patches.RUN_MODULE.get()(
                json_params=arguments["params"].encode(),
                profile=arguments["profile"],
                module_fqn=arguments["module_fqn"],
                modlib_path="",  # only payloads for coverage or debuggers use this argument, and `check` refuses them
                extensions={},
            )
        except SystemExit as stop:
            return forkserver.exit_code(stop)
        return 0


def read_payload(payload: bytes) -> dict[str, Any]:
    """Return the arguments with which the last line of a payload calls its main function.

    Raises Refusal when the payload has another form.
    """
    try:
        call: Any = ast.parse(payload[payload.rindex(CALL) :].decode(), mode="exec").body[0]
        arguments = {item.arg: item.value for item in call.value.keywords}
        if set(arguments) != ARGUMENTS:
            raise Refusal("the payload has other arguments than expected")
        return {name: ast.literal_eval(value) for name, value in arguments.items() if name != "date_time"}
    except (ValueError, SyntaxError, AttributeError, IndexError) as error:
        raise Refusal("not a payload of Ansible") from error


def _read(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", closefd=False) as file:
        return file.read()


def main(socket: str, server_folder: str) -> None:
    """Import the dependencies of the modules, then accept clients until the agent ends."""
    from ansible.release import __version__  # noqa: PLC0415  the agent imports this module, but not Ansible

    if reason := why_unsupported(__version__):
        raise SystemExit(reason)
    modules = Modules(server_folder)
    forkserver.serve(socket, modules.check, modules.work)


if __name__ == "__main__":
    main(*sys.argv[1:])
