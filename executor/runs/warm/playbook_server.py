"""The server of warm playbook runs: `python -P -m executor.runs.warm.playbook_server SOCKET RUN_FOLDER`.

It has imported `ansible-playbook` and does nothing else: no inventory, no playbook, no plugin path is looked at before
the fork, so that nothing can be carried from one run to the next. What Ansible fixes at its import is made anew in
each run: constants that name the run's folders, ids, temporary folders, cleanups. `RUN_FOLDER` stands for the folder of
every run in the server's own environment; a run whose environment differs in anything else is refused.
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

from executor.runs.warm import forkserver, memo, patches, payloads, tasks
from executor.runs.warm.compatibility import why_unsupported
from executor.runs.warm.forkserver import Refusal, Request

#: May differ from run to run without being looked at: who the run is, where it tells its events, what its temporary
#: folder is called.
OF_THE_RUN = (b"SMITH_RUN_IDENT", b"AWX_ISOLATED_DATA_DIR", b"TMPDIR")
CREDENTIALS = b"SMITH_CREDENTIALS_FILE"
#: Types of constants whose folder is made by the one who asks for its name.
MADE_WHEN_READ = ("tmp", "temppath", "tmppath")
#: Packages of Ansible's of which each run loads most.
PACKAGES = tuple(f"ansible.plugins.{kind}" for kind in ("become", "connection", "shell", "vars"))
#: What runs of ours read, in their working directory.
OUR_FILES = ("playbooks/*.yml", "roles/*/*/*.yml", "inventory/**/*.yml")
#: Imported by every run of ours. A name that an ansible-core does not have is passed over. Not ansible-runner's display
#: callback: it changes Ansible's display when it is loaded, and a callback is loaded under another name once more.
NEEDED = (
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
    """The state of a server: what its own environment was, and what it loaded."""

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
        self._documents = memo.Documents()
        self._documents.learn(file for pattern in OUR_FILES for file in sorted(Path.cwd().glob(pattern)))
        self._plugins = {name: module for name, module in sys.modules.items() if name.startswith("ansible.plugins.")}

    def check(self, request: Request) -> None:
        """Refuse a run that this server would not run as `ansible-playbook` does."""
        wanted = self._comparable(request.env, os.path.dirname(request.env.get(CREDENTIALS, b"")))
        if different := sorted(name for name, _ in wanted.items() ^ self._env.items()):
            raise Refusal(f"the environment differs from the server's in {os.fsdecode(different[0])}")
        if any(payloads.stamp_of(file) != stamp for file, stamp in self._files.items()):
            raise Refusal("ansible.cfg or ansible-core was changed since the server's start")

    def work(self, request: Request) -> int:
        """Be `ansible-playbook`; return its exit code."""
        modules, *sys.argv = request.argv
        _forget_the_fork()
        self._renew(os.fsdecode(os.path.dirname(request.env[CREDENTIALS])))
        from executor.runs.warm import connection  # noqa: PLC0415  loaded before the fork

        connection.install(modules)
        if not self._is_ours(request):
            return _play()
        local_tmp = Path(patches.LOCAL_TMP.get())
        payloads.take(self._store, local_tmp)
        templates = memo.Templates(self._store)
        for shared in (self._documents, templates):
            shared.install()
        memo.list_folders_once()
        tasks.install()
        code = _play()
        payloads.leave(self._store, local_tmp)
        templates.leave()
        return code

    def _is_ours(self, request: Request) -> bool:
        """True for a playbook of ours, which brings no module code of its own."""
        return os.path.dirname(request.argv[-1]) == os.path.join(os.fsdecode(request.cwd), "playbooks")

    def _comparable(self, env: dict[bytes, bytes], folder: bytes) -> dict[bytes, bytes]:
        """The environment without what may differ; a run's folder reads as the server's."""
        ignored = (*OF_THE_RUN, os.fsencode(forkserver.ROOM_VARIABLE))
        here = self._folder
        return {name: value.replace(folder, here) for name, value in env.items() if name not in ignored and folder}

    def _varies(self, name: str) -> bool:
        """True for a constant that names the run's folder. A temporary folder is made where its value is read."""
        return os.fsdecode(self._folder) in repr(self._constants[name])

    def _renew(self, folder: str) -> None:
        """Make anew what Ansible has fixed at its import."""
        here = os.fsdecode(self._folder)
        for name, kind in self._varying.items():
            if kind in MADE_WHEN_READ:
                value = self._config.get_config_value(name, variables=self._constants)
            else:
                value = _moved(self._constants[name], here, folder)
            self._constants[name] = value
        for found in _loaders():
            found.config = _moved(found.config, here, folder)
        _load_what_was_found(self._plugins)
        patches.RANDOM_INT.replace(f"{secrets.randbelow(2**32):08x}")  # as its module makes it
        patches.CUR_ID.replace(0)


def _import_what_runs_need() -> None:
    names = [*NEEDED]
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
    """Import a file of filters or tests under the name by which Ansible will look for it: its own, and its path's."""
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


def _forget_the_fork() -> None:
    """Give the process what each process has its own of."""
    atexit.unregister(patches.CLEANUP_TMP_FILE.get())  # those of the server's own temporary folder
    tempfile.tempdir = None
    multiprocessing.current_process().authkey = os.urandom(32)


def _moved(value: Any, here: str, there: str) -> Any:
    """A path, or a list of them, as it reads in another run's folder. All else about the environments is equal."""
    if isinstance(value, list):
        return [_moved(part, here, there) for part in value]
    return value.replace(here, there)


def _loaders() -> Iterator[Any]:
    module, kind = sys.modules[patches.PLUGIN_LOADER.module], patches.PLUGIN_LOADER.get()
    return (value for value in vars(module).values() if isinstance(value, kind))


def _load_what_was_found(known: dict[str, Any]) -> None:
    """Let a plugin of a provider's win over one of Ansible's by its name, as it does in a new process.

    Ansible takes a module that is loaded under a plugin's name for the plugin, without a look at its file.
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
    """Import, listen, fork."""
    sys.path.insert(0, sysconfig.get_path("scripts"))  # where the real ansible-playbook has its own folder
    sys.argv = [str(Path(sysconfig.get_path("scripts"), "ansible-playbook"))]
    importlib.import_module("ansible.cli.playbook")
    from ansible.release import __version__  # noqa: PLC0415  the purpose of this process

    if reason := why_unsupported(__version__):
        raise SystemExit(reason)
    playbooks = Playbooks(run_folder)
    forkserver.serve(socket, playbooks.check, playbooks.work)


if __name__ == "__main__":
    main(*sys.argv[1:])
