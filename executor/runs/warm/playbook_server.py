"""Runs playbooks in forks of this server, which has already imported Ansible (warm runs).

Command: `python -P -m executor.runs.warm.playbook_server SOCKET SERVER_FOLDER`. Before the fork, the server only
imports modules and parses files that are the same for all runs. It runs no playbook itself, so one run cannot affect
the next run. The module `forkserver` accepts requests on SOCKET and executes each run in a fork. The module `patches`
lists the private names of Ansible that this server reads, calls or replaces.

Each run has a private folder, which contains its credentials and temporary files. The private folder of the server is
SERVER_FOLDER. When the server imports Ansible, Ansible computes constants that contain paths in SERVER_FOLDER, makes
random ids and temporary folders, and registers functions that Python calls at exit. Each run repeats or reverts these
steps. The environments of the server and of a run may differ only in the path of the private folder and in
PER_RUN_VARIABLES. The server refuses any other run.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
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

from executor.runs.warm import forkserver, module_run, parse_cache, patches, payloads, tasks
from executor.runs.warm.compatibility import why_release_unsupported
from executor.runs.warm.module_script import PROXMOX_MODULE_PREFIX
from executor.runs.warm.protocol import Refusal, Request

#: Environment variables that differ in each run, and so are not compared. They contain the run's ident, the folder of
#: the run's events and the run's temporary folder.
PER_RUN_VARIABLES = (b"SMITH_RUN_IDENT", b"AWX_ISOLATED_DATA_DIR", b"TMPDIR")
#: Environment variable with the path of the credentials file, which is in the run's private folder.
CREDENTIALS_VARIABLE = b"SMITH_CREDENTIALS_FILE"
#: Types of Ansible's constants whose value is a temporary folder. Ansible makes the folder when it computes the value.
TEMPORARY_FOLDER_TYPES = ("tmp", "temppath", "tmppath")
#: Packages of Ansible whose modules are imported before the fork, because each run imports most of these modules.
PLUGIN_PACKAGES = tuple(f"ansible.plugins.{kind}" for kind in ("become", "connection", "shell", "vars"))
#: Our files that runs read, as patterns relative to the working directory.
OUR_FILE_PATTERNS = ("playbooks/*.yml", "roles/*/*/*.yml", "inventory/**/*.yml")
#: The package with the plugins of our collection, and the folders in it from which runs import modules by name.
OUR_PLUGINS = "ansible_collections.agent_smith.proxmox.plugins"
OUR_PLUGIN_FOLDERS = ("action", "filter")
#: Python modules that runs of our playbooks import. They are imported before the fork. A module that the installed
#: ansible-core lacks is skipped. ansible-runner's display callback is not in the list, because it changes Ansible's
#: display when it is imported.
MODULES_TO_IMPORT = (
    *(f"ansible.plugins.action.{name}" for name in ("assert", "debug", "fail", "normal", "set_fact", "set_stats")),
    *("ansible.plugins.action.validate_argument_spec", "ansible.plugins.strategy.linear"),
    *("ansible.plugins.cache.memory", "ansible.plugins.lookup.env", "ansible.modules"),
    *(f"ansible.plugins.callback.{name}" for name in ("default", "junit", "minimal", "oneline", "tree")),
    *("ansible.plugins.inventory.yaml", "ansible.plugins.inventory.host_list"),
    *("ansible.executor.module_common", "ansible.executor.process.worker", "ansible.executor.task_executor"),
    *("ansible.playbook.handler_task_include", "ansible.utils._junit_xml", "xml.dom.minidom"),
    *(f"ansible.module_utils._internal._json._profiles._module_legacy_{direction}" for direction in ("c2m", "m2c")),
    *("ansible.template", "ansible.inventory.manager", "ansible.vars.manager", "ansible.utils.vars"),
    *("ansible.module_utils._internal._ansiballz._loader", "ansible._internal._ansiballz._builder"),
    *(f"ansible.module_utils._internal._json._profiles._module_modern_{direction}" for direction in ("c2m", "m2c")),
    *("ansible.module_utils.distro", "ansible.module_utils.compat.selinux", "ansible.module_utils.urls"),
    *("executor.shared.error_rules", "base64", "contextlib", "functools", "runpy", "shlex", "syslog", "locale"),
    *("proxmoxer", "proxmoxer.backends.https", "requests", "urllib3", "http.cookiejar", "encodings.idna"),
    *(
        "multiprocessing.queues",
        "multiprocessing.synchronize",
        "multiprocessing.popen_fork",
        "concurrent.futures.thread",
    ),
    *("asyncio", "queue", "uuid", "zipfile", "pdb", "cmd", "difflib", "textwrap", "fcntl", "termios", "getpass", "pwd"),
)


class PlaybookRunner:
    """Checks requests to run playbooks, and runs the playbooks. A server has one instance."""

    def __init__(self, server_folder: str) -> None:
        self._server_folder = os.fsencode(server_folder)
        self._jinja_byte_code_file = Path(server_folder, parse_cache.BYTE_CODE_FILE)
        self._comparable_env = self._make_comparable(dict(os.environb), private_folder=self._server_folder)
        _import_modules_of_runs()
        # Each constant of `patches` stands for a private name in a module of Ansible. `get_value` returns the value of
        # the private name, and `module` is the name of the module.
        self._ansible_config = patches.CONFIG.get_value()
        #: the namespace of `ansible.constants`: maps the name of each constant to its value
        self._constants = vars(sys.modules[patches.CONFIG.module])
        definitions = self._ansible_config.get_configuration_definitions()
        #: the constants that differ in each run, with their types
        self._varying_constants = {
            name: definition.get("type", "")
            for name, definition in definitions.items()
            if self._contains_server_folder(name)
        }
        watched_files = [
            patches.CONFIG_FILE.get_value(),
            sys.modules["ansible.release"].__file__,
            *Path.cwd().glob("plugins/**/*.py"),
        ]
        with _installed_collection_finder():
            _import_from_collections()
            #: zip files of the modules of community.proxmox, which Ansible would otherwise make in each run
            self._payloads = payloads.Payloads(Path(patches.LOCAL_TMP.get_value()))
        watched_files += self._payloads.installed_files  # the Python files of which the payloads consist
        #: maps each watched file to its inode, size and modification time; a change makes the server refuse runs
        self._file_states_at_start = {str(file): payloads.read_file_state(file) for file in watched_files if file}
        our_files = [file for pattern in OUR_FILE_PATTERNS for file in sorted(Path.cwd().glob(pattern))]
        self._parsed_documents = parse_cache.ParsedDocuments()
        self._parsed_documents.parse_all(our_files)
        self._imported_plugins = {
            name: module for name, module in sys.modules.items() if name.startswith("ansible.plugins.")
        }

    def check_request(self, request: Request) -> None:
        """Raise Refusal if a new `ansible-playbook` process would behave differently from a fork of this server."""
        private_folder = os.path.dirname(request.env.get(CREDENTIALS_VARIABLE, b""))
        requested_env = self._make_comparable(request.env, private_folder)
        different_entries = requested_env.items() ^ self._comparable_env.items()
        if different_names := sorted(name for name, _ in different_entries):
            raise Refusal(f"the environment variable {os.fsdecode(different_names[0])} differs from the server's")
        if any(payloads.read_file_state(file) != file_state for file, file_state in self._file_states_at_start.items()):
            raise Refusal(
                "ansible.cfg, ansible-core, a module of community.proxmox or a plugin of Agent Smith has changed since "
                "the server started"
            )

    def run_playbook(self, request: Request) -> int:
        """Run the playbook as `ansible-playbook` does; return its exit code."""
        sys.argv = request.argv
        _reset_after_fork()
        private_folder = os.path.dirname(request.env[CREDENTIALS_VARIABLE])
        self._recompute_values(os.fsdecode(private_folder))
        # Ansible packs a module into a zip file and executes it in a new Python process. From now on, this process
        # executes the modules of community.proxmox itself, with the installed files that the server has imported. If
        # a file in the zip file is not a copy of an installed file (`_payloads` checks this), Ansible starts a new
        # Python process as usual.
        module_run.replace_exec_command(self._payloads)
        if not self._is_our_playbook(request):
            return _call_ansible_playbook()
        # From now on, Ansible uses the payloads (in the run's temporary folder), the YAML files that the server has
        # parsed, and the Jinja templates that earlier runs have compiled.
        self._payloads.link_into(Path(patches.LOCAL_TMP.get_value()))
        templates = parse_cache.CompiledTemplates(self._jinja_byte_code_file)
        self._parsed_documents.install()
        templates.install()
        parse_cache.cache_plugin_folder_listings()
        tasks.replace_worker_class()  # from now on, Ansible executes each Ansible task in this process, without a fork
        exit_code = _call_ansible_playbook()
        templates.save()
        return exit_code

    def _is_our_playbook(self, request: Request) -> bool:
        """True for our playbooks, False for a playbook of the provider, the organisation that operates the agent.

        Only our playbooks use the YAML files that the server has parsed, the payloads (zip files of modules) that it
        has made, and the Jinja templates that earlier runs have compiled. The provider's folder (SMITH_ACTIONS_PATH)
        may contain another version of a module or plugin.
        """
        return os.path.dirname(request.argv[-1]) == os.path.join(os.fsdecode(request.cwd), "playbooks")

    def _make_comparable(self, env: dict[bytes, bytes], private_folder: bytes) -> dict[bytes, bytes]:
        """Return an environment that can be compared with the environment of another run.

        PER_RUN_VARIABLES are removed. The path of the run's private folder is replaced by the path of the server's
        folder. If `private_folder` is empty, because the request lacks CREDENTIALS_VARIABLE, the result is empty. Then
        the run is refused.
        """
        if not private_folder:
            return {}
        # Only the server's environment has RESERVED_VARIABLE. The variable only makes the memory of the environment
        # larger. A fork overwrites this memory with the environment variables that /proc/<pid>/environ then shows.
        ignored_names = (*PER_RUN_VARIABLES, os.fsencode(forkserver.RESERVED_VARIABLE))
        return {
            name: value.replace(private_folder, self._server_folder)
            for name, value in env.items()
            if name not in ignored_names
        }

    def _contains_server_folder(self, name: str) -> bool:
        """True if the constant `name` of Ansible contains the path of the server's folder.

        In a run, this constant contains the path of the run's private folder instead.
        """
        return os.fsdecode(self._server_folder) in repr(self._constants[name])

    def _recompute_values(self, private_folder: str) -> None:
        """Compute again the values that Ansible computed when the server imported it."""
        server_folder = os.fsdecode(self._server_folder)
        for name, constant_type in self._varying_constants.items():
            if constant_type in TEMPORARY_FOLDER_TYPES:
                value = self._ansible_config.get_config_value(name, variables=self._constants)
            else:
                value = _replace_folder(self._constants[name], server_folder, private_folder)
            self._constants[name] = value
        for loader in _plugin_loaders():
            loader.config = _replace_folder(loader.config, server_folder, private_folder)
        _prefer_provider_plugins(self._imported_plugins)
        patches.RANDOM_INT.set_value(f"{secrets.randbelow(2**32):08x}")  # the same formula as in `ansible.utils.vars`
        patches.CUR_ID.set_value(0)  # the counter in the ids of plays and Ansible tasks


def _import_modules_of_runs() -> None:
    """Import MODULES_TO_IMPORT, the modules of PLUGIN_PACKAGES, and Ansible's Jinja filters and Jinja tests."""
    names = [*MODULES_TO_IMPORT]
    for package_name in PLUGIN_PACKAGES:
        package = importlib.import_module(package_name)
        names += [f"{package_name}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for loader in (patches.FILTER_LOADER.get_value(), patches.TEST_LOADER.get_value()):
        package = importlib.import_module(loader.package)
        for module in pkgutil.iter_modules(package.__path__, prefix=f"{loader.package}."):
            _import_by_file(loader, module.name)


@contextlib.contextmanager
def _installed_collection_finder() -> Iterator[None]:
    """During the block, let Python import modules from collections. In each run, Ansible installs its own finder."""
    finder = patches.COLLECTION_FINDER.get_value()(paths=[*patches.COLLECTIONS_PATHS.get_value()])
    finder._install()
    try:
        yield
    finally:
        finder._remove()


def _import_from_collections() -> None:
    """Import our action plugins and filters, and the modules that the action plugins call.

    Otherwise, Ansible's collection loader would compile the source of these plugins in each run.
    """
    for folder in OUR_PLUGIN_FOLDERS:
        for file in sorted(Path.cwd().glob(f"plugins/{folder}/*.py")):
            importlib.import_module(f"{OUR_PLUGINS}.{folder}.{file.stem}")
    for name in payloads.CALLED_PROXMOX_MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(PROXMOX_MODULE_PREFIX + name)


def _import_by_file(loader: Any, name: str) -> None:
    """Import a file of Jinja filters or tests under Ansible's name for it: the module's name and a hash of the path."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin:
        name_with_hash = f"{name}_{abs(hash(spec.origin))}"
        loader._load_module_source(python_module_name=name_with_hash, path=spec.origin)


def _call_ansible_playbook() -> int:
    """Run the playbook in `sys.argv` with the steps of `ansible-playbook`; return its exit code."""
    try:
        patches.CHECK_BLOCKING_IO.get_value()()
        patches.INITIALIZE_LOCALE.get_value()()
        patches.PLAYBOOK_MAIN.get_value()(sys.argv)
    except SystemExit as system_exit:
        return forkserver.exit_code_of_system_exit(system_exit)
    return 0


def _reset_after_fork() -> None:
    """Reset the state of Python that must differ between the server and a run."""
    atexit.unregister(patches.CLEANUP_TMP_FILE.get_value())  # at exit, it would remove the server's temporary folder
    tempfile.tempdir = None
    multiprocessing.current_process().authkey = os.urandom(32)


def _replace_folder(path_or_paths: Any, old_folder: str, new_folder: str) -> Any:
    """Return a path, or a list of paths, in which `new_folder` replaces `old_folder`."""
    if isinstance(path_or_paths, list):
        return [_replace_folder(path, old_folder, new_folder) for path in path_or_paths]
    return path_or_paths.replace(old_folder, new_folder)


def _plugin_loaders() -> Iterator[Any]:
    """Return Ansible's plugin loaders."""
    module, loader_class = sys.modules[patches.PLUGIN_LOADER.module], patches.PLUGIN_LOADER.get_value()
    return (value for value in vars(module).values() if isinstance(value, loader_class))


def _prefer_provider_plugins(imported_plugins: dict[str, Any]) -> None:
    """Make a provider's plugin take precedence over a plugin of Ansible with the same name, as in a new process.

    If a Python module with a plugin's name is already imported, Ansible uses this module, even if the plugin is in
    another file. `imported_plugins` contains the modules of the plugins that the server has imported.
    """
    load_module_source = patches.LOAD_MODULE_SOURCE.get_value()

    def load_by_file(self: Any, *, python_module_name: str, path: str) -> Any:
        module = imported_plugins.get(python_module_name)
        is_from_server = module is not None and sys.modules.get(python_module_name) is module
        if is_from_server and getattr(module, "__file__", "") != str(path):
            del sys.modules[python_module_name]
        return load_module_source(self, python_module_name=python_module_name, path=path)

    patches.LOAD_MODULE_SOURCE.set_value(load_by_file)


def main(socket_path: str, server_folder: str) -> None:
    """Import Ansible, then accept requests until the agent ends."""
    # Imports and parsing make hardly any garbage, but the garbage collector would take a quarter of the CPU time of the
    # start. `forkserver.serve` enables it.
    gc.disable()
    sys.path.insert(0, sysconfig.get_path("scripts"))  # Python does the same when it runs the script ansible-playbook
    sys.argv = [str(Path(sysconfig.get_path("scripts"), "ansible-playbook"))]
    importlib.import_module("ansible.cli.playbook")
    from ansible.release import __version__  # noqa: PLC0415  Ansible is imported after gc.disable()

    if reason := why_release_unsupported(__version__):
        raise SystemExit(reason)
    runner = PlaybookRunner(server_folder)
    forkserver.serve(socket_path, runner.check_request, runner.run_playbook)


if __name__ == "__main__":
    main(*sys.argv[1:])
