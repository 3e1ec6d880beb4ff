"""Makes a warm run execute the modules of community.proxmox in its own process, without new Python processes.

A warm run is a fork of a server process that has already imported Ansible and these modules. The run calls
`replace_exec_command`, which replaces a method of Ansible's local connection plugin. So a playbook needs no other
connection plugin, and the same playbook runs with and without a server process.

A payload is a zip file of a module and the files that the module imports. A module runs in the run's process only if
each file of its payload is a copy of an installed file, because the server process has imported the installed files.
Ansible runs every other module as usual.

A module may change the state of its process. The state that AnsibleModule and community.proxmox change is restored
afterwards. If a module crashes Python or calls `os._exit`, the run ends, too. If a module does not return, the run is
ended at its deadline. No other run is affected.

The module `patches` defines an object for each private name of Ansible that is used here, such as EXEC_COMMAND for
`Connection.exec_command`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from executor.runs.warm import forkserver, patches
from executor.runs.warm.module_script import ModuleCall, read_module_call
from executor.runs.warm.payloads import Payloads

ModuleOutcome = tuple[int, bytes, bytes]  #: exit code, output, error output
_NameValues = list[tuple[patches.PrivateName, Any]]  #: private names of Ansible, each with a value


def replace_exec_command(payloads: Payloads) -> None:
    """Make Ansible's local connection in this process run modules of community.proxmox in this process."""
    original_exec_command: Callable[..., ModuleOutcome] = patches.EXEC_COMMAND.get_value()

    def exec_command(self: Any, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> ModuleOutcome:
        # `in_data` is the module's script. With `become`, another user runs the module, so this process cannot run it.
        if in_data and self.become is None:
            call = read_module_call(cmd, in_data)
            if call and payloads.contains_only_installed_files(call.module, call.zip_data):
                return run_module(call, self.cwd or os.getcwd())
        return original_exec_command(self, cmd, in_data=in_data, sudoable=sudoable)

    patches.EXEC_COMMAND.set_value(exec_command)


def run_module(call: ModuleCall, cwd: str) -> ModuleOutcome:
    """Run a module in this process as a new Python process would run it; return the module's exit code and output."""
    output, error_output = _memory_text_file(), _memory_text_file()
    with (
        _restore_process_afterwards(),
        _module_utils_as_in_module_process(),  # sets the state that Ansible's module_utils have in a new process
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(error_output),
        warnings.catch_warnings(),
    ):
        # `runpy` warns about a module that is already imported. The server has imported it.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
        os.chdir(cwd)
        os.environ.update(call.variables)
        exit_code = _call_module_main(call)
    return exit_code, _read_content(output), _read_content(error_output)


def _call_module_main(call: ModuleCall) -> int:
    try:
        patches.RUN_MODULE.get_value()(
            json_params=call.params.encode(),
            profile=call.serialization_profile,
            module_fqn=call.module,
            modlib_path="",  # only modules that start another interpreter use it, none of community.proxmox
            extensions={},  # Ansible uses it only for coverage and debuggers
        )
    except SystemExit as system_exit:
        return forkserver.exit_code_of_system_exit(system_exit)
    return 0


@contextlib.contextmanager
def _restore_process_afterwards() -> Iterator[None]:
    """After the block, restore the state of the process that a module changes.

    The state is the environment, the working directory, the umask, `sys.argv`, `__main__` and the folder of `tempfile`.
    `tempfile` remembers the folder that TMPDIR named when `tempfile` was first used. So before the block, `tempfile` is
    made to read TMPDIR again.
    """
    environment, cwd, umask = dict(os.environb), os.getcwd(), os.umask(0o077)
    os.umask(umask)
    argv, main_module, temporary_folder = sys.argv, sys.modules["__main__"], tempfile.tempdir
    sys.argv, sys.modules["__main__"], tempfile.tempdir = [""], types.ModuleType("__main__"), None
    try:
        yield
    finally:
        sys.argv, sys.modules["__main__"], tempfile.tempdir = argv, main_module, temporary_folder
        os.umask(umask)
        os.chdir(cwd)
        os.environb.clear()
        os.environb.update(environment)


@contextlib.contextmanager
def _module_utils_as_in_module_process() -> Iterator[None]:
    """Give Ansible's module_utils the state that they have in a module's own process; restore their state afterwards.

    In ansible-playbook, the module_utils have a different state: they would write the warnings of a module to the
    display and not into the module's result.
    """
    module_state: _NameValues = [
        (patches.IS_CONTROLLER, False),
        # The replacement imports nothing, as in a module's own process.
        (patches.IMPORT_CONTROLLER_MODULE, lambda _module_name: None),
        # The replacement takes from the module's parameters whether tracebacks are enabled.
        (patches.IS_TRACEBACK_ENABLED, patches.IS_MODULE_TRACEBACK_ENABLED.get_value()),
        # The values below are empty, as in a module's own process before the module starts.
        (patches.MODULE_TRACEBACK_EVENTS, None),
        (patches.MODULE_WARNINGS, {}),
        (patches.MODULE_DEPRECATIONS, {}),
        (patches.MODULE_ARGUMENTS, None),
        (patches.MODULE_PROFILE, None),
        (patches.PARSED_MODULE_ARGUMENTS, None),
    ]
    saved_state: _NameValues = [(private_name, private_name.get_value()) for private_name, _ in module_state]
    _set_values(module_state)
    try:
        yield
    finally:
        _set_values(saved_state)


def _set_values(state: _NameValues) -> None:
    for private_name, value in state:
        private_name.set_value(value)


def _memory_text_file() -> io.TextIOWrapper:
    """Return a file in memory that encodes text as the standard output of a new process does."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape")


def _read_content(file: io.TextIOWrapper) -> bytes:
    file.flush()
    raw_file = file.buffer
    return raw_file.getvalue() if isinstance(raw_file, io.BytesIO) else b""
