"""The server of warm playbook runs: `python -P -m executor.runs.warm.playbook_server SOCKET RUN_FOLDER`.

It has imported `ansible-playbook` and nothing else: it reads no inventory, playbook or plugin path before the fork, so
one run cannot affect the next. What Ansible computes at its import is computed again in each run: constants with the
run's folders, ids, temporary folders, cleanups. In the server's environment `RUN_FOLDER` takes the place of a run's
folder; a run whose environment differs in anything else is refused.
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

#: Variables that differ in each run and are not compared: its ident, the folder of its events, its temporary folder.
PER_RUN_VARIABLES = (b"SMITH_RUN_IDENT", b"AWX_ISOLATED_DATA_DIR", b"TMPDIR")
CREDENTIALS = b"SMITH_CREDENTIALS_FILE"
#: Types of constants that name a folder which Ansible makes when the value is read.
TEMPORARY_FOLDER_TYPES = ("tmp", "temppath", "tmppath")
#: Packages of Ansible of which each run imports most modules.
PACKAGES = tuple(f"ansible.plugins.{kind}" for kind in ("become", "connection", "shell", "vars"))
#: Files of ours that runs read, below the working directory.
OUR_FILES = ("playbooks/*.yml", "roles/*/*/*.yml", "inventory/**/*.yml")
#: Modules that each run of ours imports. One that this ansible-core lacks is skipped. Without ansible-runner's display
#: callback, which changes Ansible's display at its import, and is imported again under another name.
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
    """Checks and runs playbooks; one instance per server."""

    def __init__(self, run_folder: str) -> None:
        self._folder = os.fsencode(run_folder)
        self._store = payloads.store_in(run_folder)
        self._store.mkdir(mode=0o700, exist_ok=True)
        self._env = self._comparable(dict(os.environb), self._folder)
        _import_what_runs_need()
        self._config = patches.CONFIG.get()
        self._constants = vars(sys.modules[patches.CONFIG.module])
        definitions = self._config.get_configuration_definitions()
        self._varying = {name: facts.get("type", "") for name, facts in definitions.items() if self._varies(name)}
        fixed = [patches.CONFIG_FILE.get(), sys.modules["ansible.release"].__file__]
        self._files = {str(file): payloads.stamp_of(file) for file in fixed if file}
        self._documents = parse_cache.ParsedDocuments()
        self._documents.load(file for pattern in OUR_FILES for file in sorted(Path.cwd().glob(pattern)))
        self._plugins = {name: module for name, module in sys.modules.items() if name.startswith("ansible.plugins.")}

    def check(self, request: Request) -> None:
        """Refuse a run that `ansible-playbook` would run differently."""
        wanted = self._comparable(request.env, os.path.dirname(request.env.get(CREDENTIALS, b"")))
        if different := sorted(name for name, _ in wanted.items() ^ self._env.items()):
            raise Refusal(f"the environment differs from the server's in {os.fsdecode(different[0])}")
        if any(payloads.stamp_of(file) != stamp for file, stamp in self._files.items()):
            raise Refusal("ansible.cfg or ansible-core has changed since the server started")

    def work(self, request: Request) -> int:
        """Run the playbook as `ansible-playbook` does; return its exit code."""
        modules, *sys.argv = request.argv
        _reset_after_fork()
        self._recompute(os.fsdecode(os.path.dirname(request.env[CREDENTIALS])))
        from executor.runs.warm import connection  # noqa: PLC0415  loaded before the fork

        connection.install(modules)
        if not self._is_ours(request):
            return _play()
        local_tmp = Path(patches.LOCAL_TMP.get())
        payloads.link_saved(self._store, local_tmp)
        templates = parse_cache.CompiledTemplates(self._store)
        for shared in (self._documents, templates):
            shared.install()
        parse_cache.list_folders_once()
        tasks.install()
        code = _play()
        payloads.save(self._store, local_tmp)
        templates.save()
        return code

    def _is_ours(self, request: Request) -> bool:
        """True for a playbook of ours, which has no module code beside it."""
        return os.path.dirname(request.argv[-1]) == os.path.join(os.fsdecode(request.cwd), "playbooks")

    def _comparable(self, env: dict[bytes, bytes], folder: bytes) -> dict[bytes, bytes]:
        """Return the environment for comparison, with the server's folder in place of the run's."""
        ignored = (*PER_RUN_VARIABLES, os.fsencode(forkserver.RESERVED_VARIABLE))
        here = self._folder
        return {name: value.replace(folder, here) for name, value in env.items() if name not in ignored and folder}

    def _varies(self, name: str) -> bool:
        """True for a constant that contains the run's folder."""
        return os.fsdecode(self._folder) in repr(self._constants[name])

    def _recompute(self, folder: str) -> None:
        """Compute again what Ansible computed at its import."""
        here = os.fsdecode(self._folder)
        for name, kind in self._varying.items():
            if kind in TEMPORARY_FOLDER_TYPES:
                value = self._config.get_config_value(name, variables=self._constants)
            else:
                value = _with_folder(self._constants[name], here, folder)
            self._constants[name] = value
        for found in _loaders():
            found.config = _with_folder(found.config, here, folder)
        _prefer_found_plugins(self._plugins)
        patches.RANDOM_INT.replace(f"{secrets.randbelow(2**32):08x}")  # as its module computes it
        patches.CUR_ID.replace(0)


def _import_what_runs_need() -> None:
    names = [*IMPORTS]
    for name in PACKAGES:
        package = importlib.import_module(name)
        names += [f"{name}.{found.name}" for found in pkgutil.iter_modules(package.__path__)]
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for plugins in (patches.FILTER_LOADER.get(), patches.TEST_LOADER.get()):
        for found in pkgutil.iter_modules(importlib.import_module(plugins.package).__path__, f"{plugins.package}."):
            _import_by_file(plugins, found.name)


def _import_by_file(plugins: Any, name: str) -> None:
    """Import a file of filters or tests under the name that Ansible gives it: its own and the hash of its path."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin:
        by_path = f"{name}_{abs(hash(spec.origin))}"
        plugins._load_module_source(python_module_name=by_path, path=spec.origin)


def _play() -> int:
    try:
        patches.CHECK_BLOCKING_IO.get()()
        patches.INITIALIZE_LOCALE.get()()
        patches.PLAYBOOK_MAIN.get()(sys.argv)
    except SystemExit as stop:
        return forkserver.exit_code(stop)
    return 0


def _reset_after_fork() -> None:
    """Reset what must differ in each process."""
    atexit.unregister(patches.CLEANUP_TMP_FILE.get())  # it would remove the server's temporary folder
    tempfile.tempdir = None
    multiprocessing.current_process().authkey = os.urandom(32)


def _with_folder(value: Any, here: str, there: str) -> Any:
    """Return a path, or a list of paths, with one folder replaced by another."""
    if isinstance(value, list):
        return [_with_folder(part, here, there) for part in value]
    return value.replace(here, there)


def _loaders() -> Iterator[Any]:
    module, kind = sys.modules[patches.PLUGIN_LOADER.module], patches.PLUGIN_LOADER.get()
    return (value for value in vars(module).values() if isinstance(value, kind))


def _prefer_found_plugins(known: dict[str, Any]) -> None:
    """Make a provider's plugin take precedence over Ansible's of the same name, as in a new process.

    Ansible uses a module that is already imported under a plugin's name, even if it is from another file.
    """
    load = patches.LOAD_MODULE_SOURCE.get()

    def load_by_file(self: Any, *, python_module_name: str, path: str) -> Any:
        ours = known.get(python_module_name)
        is_loaded = ours is not None and sys.modules.get(python_module_name) is ours
        if is_loaded and getattr(ours, "__file__", "") != str(path):
            del sys.modules[python_module_name]
        return load(self, python_module_name=python_module_name, path=path)

    patches.LOAD_MODULE_SOURCE.replace(load_by_file)


def main(socket: str, run_folder: str) -> None:
    """Import Ansible, then serve until the agent ends."""
    sys.path.insert(0, sysconfig.get_path("scripts"))  # as for the script ansible-playbook itself
    sys.argv = [str(Path(sysconfig.get_path("scripts"), "ansible-playbook"))]
    importlib.import_module("ansible.cli.playbook")
    from ansible.release import __version__  # noqa: PLC0415  the purpose of this process

    if reason := why_unsupported(__version__):
        raise SystemExit(reason)
    playbooks = Playbooks(run_folder)
    forkserver.serve(socket, playbooks.check, playbooks.work)


if __name__ == "__main__":
    main(*sys.argv[1:])
