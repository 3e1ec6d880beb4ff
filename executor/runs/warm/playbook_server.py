"""Runs playbooks in forks of this server, which has already imported Ansible (warm runs).

Command: `python -P -m executor.runs.warm.playbook_server SOCKET SERVER_FOLDER`. Before the fork, the server only
imports and parses files that are the same for all runs. It runs no playbook itself, so one run cannot affect the next
run. Ansible computes some values when it is imported: constants with the run's folders, ids, temporary folders,
cleanups at exit. These values are computed again in each run. The server's environment is the environment of a run
whose private folder is SERVER_FOLDER. The server refuses a run whose environment differs in more than its private
folder and PER_RUN_VARIABLES.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import pkgutil
import secrets
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from executor.runs.warm import forkserver, parse_cache, patches, payloads, tasks
from executor.runs.warm.compatibility import why_unsupported
from executor.runs.warm.protocol import Refusal, Request

#: Environment variables that differ in each run and are not compared. They contain the run's ident, the folder of its
#: events and its temporary folder.
PER_RUN_VARIABLES = (b"SMITH_RUN_IDENT", b"AWX_ISOLATED_DATA_DIR", b"TMPDIR")
#: Environment variable with the path of the credentials file, which is in the run's private folder.
CREDENTIALS = b"SMITH_CREDENTIALS_FILE"
#: Types of Ansible's constants whose value is a temporary folder. Ansible makes the folder when it computes the value.
TEMPORARY_FOLDER_TYPES = ("tmp", "temppath", "tmppath")
#: Packages of Ansible whose modules are imported before the fork, because each run imports most of them.
PACKAGES = tuple(f"ansible.plugins.{kind}" for kind in ("become", "connection", "shell", "vars"))
#: The files of ours that runs read, as patterns relative to the working directory.
OUR_FILES = ("playbooks/*.yml", "roles/*/*/*.yml", "inventory/**/*.yml")
#: Python modules that runs of our playbooks import. They are imported before the fork. A module that the installed
#: ansible-core lacks is skipped. ansible-runner's display callback is not in the list, because it changes Ansible's
#: display when it is imported.
IMPORTS = (
    *(f"ansible.plugins.action.{name}" for name in ("assert", "debug", "fail", "normal", "set_fact", "set_stats")),
    *("ansible.plugins.action.validate_argument_spec", "ansible.plugins.strategy.linear"),
    *("ansible.plugins.cache.memory", "ansible.plugins.lookup.env", "ansible.modules"),
    *(f"ansible.plugins.callback.{name}" for name in ("default", "junit", "minimal", "oneline", "tree")),
    *("ansible.plugins.inventory.yaml", "ansible.plugins.inventory.host_list"),
    *("ansible.executor.module_common", "ansible.executor.process.worker", "ansible.executor.task_executor"),
    *("ansible.playbook.handler_task_include", "ansible.utils._junit_xml", "xml.dom.minidom"),
    *(f"ansible.module_utils._internal._json._profiles._module_legacy_{way}" for way in ("c2m", "m2c")),
    *("ansible.template", "ansible.inventory.manager", "ansible.vars.manager", "ansible.utils.vars"),
    *("ansible.module_utils._internal._ansiballz._loader", "ansible._internal._ansiballz._builder"),
    *("executor.proxmox.error_rules", "executor.runs.warm.connection", "base64", "contextlib", "functools"),
    *("proxmoxer", "proxmoxer.backends.https", "requests", "urllib3", "http.cookiejar", "encodings.idna"),
    *(
        "multiprocessing.queues",
        "multiprocessing.synchronize",
        "multiprocessing.popen_fork",
        "concurrent.futures.thread",
    ),
    *("asyncio", "queue", "uuid", "zipfile", "pdb", "cmd", "difflib", "textwrap", "fcntl", "termios", "getpass", "pwd"),
)


class Playbooks:
    """Checks and runs playbooks. A server has one instance."""

    def __init__(self, server_folder: str) -> None:
        self._folder = os.fsencode(server_folder)
        self._store = payloads.store_in(server_folder)
        self._store.mkdir(mode=0o700, exist_ok=True)
        self._env = self._comparable(dict(os.environb), self._folder)
        _import_what_runs_need()
        self._config = patches.CONFIG.get()
        self._constants = vars(sys.modules[patches.CONFIG.module])
        definitions = self._config.get_configuration_definitions()
        self._varying_constants = {
            name: definition.get("type", "") for name, definition in definitions.items() if self._varies(name)
        }
        unchanged_files = [patches.CONFIG_FILE.get(), sys.modules["ansible.release"].__file__]
        self._stamps = {str(file): payloads.stamp_of(file) for file in unchanged_files if file}
        self._documents = parse_cache.ParsedDocuments()
        self._documents.load(file for pattern in OUR_FILES for file in sorted(Path.cwd().glob(pattern)))
        self._plugins = {name: module for name, module in sys.modules.items() if name.startswith("ansible.plugins.")}

    def check(self, request: Request) -> None:
        """Raise Refusal if a new `ansible-playbook` process would behave differently from a fork of this server."""
        requested = self._comparable(request.env, os.path.dirname(request.env.get(CREDENTIALS, b"")))
        if different := sorted(name for name, _ in requested.items() ^ self._env.items()):
            raise Refusal(f"the environment differs from the server's in {os.fsdecode(different[0])}")
        if any(payloads.stamp_of(file) != stamp for file, stamp in self._stamps.items()):
            raise Refusal("ansible.cfg or ansible-core has changed since the server started")

    def work(self, request: Request) -> int:
        """Run the playbook as `ansible-playbook` does; return its exit code."""
        module_socket, *sys.argv = request.argv
        _reset_after_fork()
        self._recompute(os.fsdecode(os.path.dirname(request.env[CREDENTIALS])))
        from executor.runs.warm import connection  # noqa: PLC0415  the server has already imported it

        connection.install(module_socket)
        if not self._is_our_playbook(request):
            return _run_playbook()
        local_tmp = Path(patches.LOCAL_TMP.get())
        payloads.link_saved(self._store, local_tmp)
        templates = parse_cache.CompiledTemplates(self._store)
        for cache in (self._documents, templates):
            cache.install()
        parse_cache.list_folders_once()
        tasks.install()
        code = _run_playbook()
        payloads.save(self._store, local_tmp)
        templates.save()
        return code

    def _is_our_playbook(self, request: Request) -> bool:
        """True for our playbooks. A provider's playbook may have modules and plugins beside it."""
        return os.path.dirname(request.argv[-1]) == os.path.join(os.fsdecode(request.cwd), "playbooks")

    def _comparable(self, env: dict[bytes, bytes], folder: bytes) -> dict[bytes, bytes]:
        """Return an environment that can be compared with the environment of another run.

        PER_RUN_VARIABLES are removed. The path `folder`, a run's private folder, is replaced by the server's folder.
        """
        ignored = (*PER_RUN_VARIABLES, os.fsencode(forkserver.RESERVED_VARIABLE))
        server_folder = self._folder
        return {
            name: value.replace(folder, server_folder) for name, value in env.items() if name not in ignored and folder
        }

    def _varies(self, name: str) -> bool:
        """True if the constant `name` of Ansible contains the path of the private folder: it differs in each run."""
        return os.fsdecode(self._folder) in repr(self._constants[name])

    def _recompute(self, folder: str) -> None:
        """Compute again the values that Ansible computed when the server imported it.

        `folder` is the run's private folder.
        """
        server_folder = os.fsdecode(self._folder)
        for name, kind in self._varying_constants.items():
            if kind in TEMPORARY_FOLDER_TYPES:
                value = self._config.get_config_value(name, variables=self._constants)
            else:
                value = _with_folder(self._constants[name], server_folder, folder)
            self._constants[name] = value
        for loader in _loaders():
            loader.config = _with_folder(loader.config, server_folder, folder)
        _prefer_plugin_by_path(self._plugins)
        patches.RANDOM_INT.replace(f"{secrets.randbelow(2**32):08x}")  # the same formula as in `ansible.utils.vars`
        patches.CUR_ID.replace(0)


def _import_what_runs_need() -> None:
    names = [*IMPORTS]
    for name in PACKAGES:
        package = importlib.import_module(name)
        names += [f"{name}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for loader in (patches.FILTER_LOADER.get(), patches.TEST_LOADER.get()):
        for module in pkgutil.iter_modules(importlib.import_module(loader.package).__path__, f"{loader.package}."):
            _import_by_file(loader, module.name)


def _import_by_file(loader: Any, name: str) -> None:
    """Import a file of filters or tests under the name that Ansible uses: the module's name and a hash of the path."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin:
        by_path = f"{name}_{abs(hash(spec.origin))}"
        loader._load_module_source(python_module_name=by_path, path=spec.origin)


def _run_playbook() -> int:
    """Run the playbook in `sys.argv` with the steps of `ansible-playbook`; return its exit code."""
    try:
        patches.CHECK_BLOCKING_IO.get()()
        patches.INITIALIZE_LOCALE.get()()
        patches.PLAYBOOK_MAIN.get()(sys.argv)
    except SystemExit as stop:
        return forkserver.exit_code(stop)
    return 0


def _reset_after_fork() -> None:
    """Reset the state that must differ in each process."""
    atexit.unregister(patches.CLEANUP_TMP_FILE.get())  # in this fork it would remove the server's temporary folder
    tempfile.tempdir = None
    multiprocessing.current_process().authkey = os.urandom(32)


def _with_folder(value: Any, old: str, new: str) -> Any:
    """Return a path, or a list of paths, with the folder `old` replaced by `new`."""
    if isinstance(value, list):
        return [_with_folder(part, old, new) for part in value]
    return value.replace(old, new)


def _loaders() -> Iterator[Any]:
    """Return Ansible's plugin loaders."""
    module, kind = sys.modules[patches.PLUGIN_LOADER.module], patches.PLUGIN_LOADER.get()
    return (value for value in vars(module).values() if isinstance(value, kind))


def _prefer_plugin_by_path(imported: dict[str, Any]) -> None:
    """Make a provider's plugin take precedence over a plugin of Ansible with the same name, as in a new process.

    If a Python module with a plugin's name is already imported, Ansible uses this module, even if the plugin's file is
    another one. `imported` contains the modules of the plugins that the server has imported.
    """
    load = patches.LOAD_MODULE_SOURCE.get()

    def load_by_file(self: Any, *, python_module_name: str, path: str) -> Any:
        module = imported.get(python_module_name)
        is_from_server = module is not None and sys.modules.get(python_module_name) is module
        if is_from_server and getattr(module, "__file__", "") != str(path):
            del sys.modules[python_module_name]
        return load(self, python_module_name=python_module_name, path=path)

    patches.LOAD_MODULE_SOURCE.replace(load_by_file)


def main(socket: str, server_folder: str) -> None:
    """Import Ansible, then accept clients until the agent ends."""
    sys.path.insert(0, sysconfig.get_path("scripts"))  # Python does the same when it runs the script ansible-playbook
    sys.argv = [str(Path(sysconfig.get_path("scripts"), "ansible-playbook"))]
    importlib.import_module("ansible.cli.playbook")
    from ansible.release import __version__  # noqa: PLC0415  the agent must not import Ansible

    if reason := why_unsupported(__version__):
        raise SystemExit(reason)
    playbooks = Playbooks(server_folder)
    forkserver.serve(socket, playbooks.check, playbooks.work)


if __name__ == "__main__":
    main(*sys.argv[1:])
