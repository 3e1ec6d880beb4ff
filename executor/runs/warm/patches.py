"""Lists every private name of Ansible, Jinja, PyYAML and ansible-runner that warm runs replace or use.

A warm run is a fork of a server process that has already imported Ansible. A cold run is a new ansible-playbook
process. Any release of these projects may change private names. So runs are cold if the installed ansible-core was not
tested with warm runs, or if a name of this list is missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: The tested series of ansible-core; a series is the first two numbers of a release. With these series, a test has
#: compared the events of warm runs with the events of cold runs (tests/integration/runs/test_warm.py). With any other
#: series all runs are cold.
TESTED = ("2.19", "2.21")


@dataclass(frozen=True, kw_only=True)
class PrivateName:
    """A private name that warm runs need: the dotted path `name` inside `module`, such as `DataLoader.path_dwim`."""

    module: str
    name: str
    why: str  #: what warm runs use the name for, or what the replaced value does
    is_replaced: bool = False  #: True if warm runs replace the value of the name
    source: str = ""  #: `file:name` of the definition, if the name is not defined in `module`
    versions: tuple[str, ...] = TESTED  #: the series of ansible-core in which the name exists

    @property
    def attribute(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]

    def get(self) -> Any:
        """Import the module and return the value of the name."""
        return getattr(self._owner(), self.attribute)

    def replace(self, value: Any) -> None:
        """Set the value of the name."""
        setattr(self._owner(), self.attribute, value)

    def is_defined(self, read: Callable[[str], str]) -> bool:
        """True when the name is defined in its source file, whose text `read` returns.

        The source text is searched, because importing Ansible would take a second.
        """
        file, _, defined = self.source.partition(":")
        module = self.module.replace(".", "/")
        text = read(file) if file else read(f"{module}.py") or read(f"{module}/__init__.py")
        owner, _, name = (defined or self.name).rpartition(".")
        if not owner:
            return re.search(_TOP_LEVEL.format(name=name), text, re.MULTILINE) is not None
        if (start := re.search(rf"^class {owner}\b", text, re.MULTILINE)) is None:
            return False
        end = _TOP_LEVEL_LINE.search(text, start.end())
        block = text[start.start() : end.start() if end else len(text)]
        return re.search(_MEMBER.format(name=name), block, re.MULTILINE) is not None

    def _owner(self) -> Any:
        """Return the module or class in which the last part of the name is defined."""
        owner: Any = importlib.import_module(self.module)
        for part in self.name.split(".")[:-1]:
            owner = getattr(owner, part)
        return owner


# Patterns for source text. _TOP_LEVEL matches a definition or an import in a module, _TOP_LEVEL_LINE the first line
# after a class, _MEMBER a definition in a class.
_TOP_LEVEL = r"^(?:def|class) {name}\b|^{name}\b\s*[:=]|^(?:from \S+ )?import [^#\n]*\b{name}\b"
_TOP_LEVEL_LINE = re.compile(r"^\S", re.MULTILINE)
_MEMBER = r"^    def {name}\b|^    {name}\b\s*[:=]|\bself\.{name}\b\s*[:=]"


def _used(module: str, name: str, why: str, *, source: str = "") -> PrivateName:
    """Return a private name that warm runs only read or call."""
    return PrivateName(module=module, name=name, why=why, source=source)


def _replaced(module: str, name: str, why: str, *, source: str = "") -> PrivateName:
    """Return a private name whose value warm runs replace."""
    return PrivateName(module=module, name=name, why=why, is_replaced=True, source=source)


# --- Used by connection.py, module_server.py and payloads.py to run modules -------------------------------------------

_LOCAL = "ansible.plugins.connection.local"
EXEC_COMMAND = _replaced(
    _LOCAL, "Connection.exec_command", "makes the module server run the modules of community.proxmox"
)
CONNECTION_CWD = _used(_LOCAL, "Connection.cwd", "the working directory of a module")
CONNECTION_BECOME = _used(
    "ansible.plugins.connection",
    "ConnectionBase.become",
    "a module that runs as another user is not run by the module server",
)
RUN_MODULE = _used("ansible.module_utils._internal._ansiballz._loader", "run_module", "runs a module from its payload")
ZIP_DATA = _used("ansible.executor.module_common", "_CachedModule.zip_data", "the zip file in a stored payload")

# --- Used by parse_cache.py to share parsed YAML ----------------------------------------------------------------------

_TAGS = "ansible._internal._datatag._tags"
_DATALOADER = "ansible.parsing.dataloader"
YAML_LOAD = _replaced("yaml", "load", "returns a document that was parsed before the fork")
DATA_LOADER = _used(_DATALOADER, "DataLoader", "parses our files as a run does")
LOAD_FROM_FILE = _replaced(_DATALOADER, "DataLoader.load_from_file", "returns a parsed document without a copy of it")
FILE_CACHE = _used(_DATALOADER, "DataLoader._FILE_CACHE", "the documents that a run has already read")
PATH_DWIM = _used(_DATALOADER, "DataLoader.path_dwim", "computes a key of _FILE_CACHE")
TAGS = _used("ansible.module_utils._internal._datatag", "AnsibleTagHelper.tags", "tags belong to a document's identity")
ORIGIN = _used(_TAGS, "Origin", "a tag of a plugin's documentation")
TRUSTED_AS_TEMPLATE = _used(_TAGS, "TrustedAsTemplate", "a tag of a plugin's documentation")
YAML_LOADER = _used("ansible.parsing.yaml.loader", "AnsibleLoader", "the loader of a plugin's documentation")
FRAGMENT_LOADER = _used("ansible.plugins.loader", "fragment_loader", "finds documentation that plugins share")
ADD_FRAGMENTS = _used("ansible.utils.plugin_docs", "add_fragments", "parses documentation that plugins share")
ROUTING_TO_DICT = _used(
    "ansible.utils.collection_loader._collection_meta", "_meta_yml_to_dict", "parses a collection's routing table"
)
RUNNER_CALLBACK = _used(
    "ansible_runner.display_callback.callback.awx_display",
    "CallbackModule",
    "a plugin whose documentation each run reads",
)

# --- Used by parse_cache.py to share compiled templates ---------------------------------------------------------------

_JINJA_BITS = "ansible._internal._templating._jinja_bits"
_JINJA = "jinja2.environment"
COMPILE = _replaced(
    _JINJA_BITS,
    "AnsibleEnvironment.compile",
    "returns stored byte code",
    source="jinja2/environment.py:Environment.compile",
)
COMPILE_EXPRESSION = _replaced(_JINJA_BITS, "AnsibleEnvironment.compile_expression", "returns stored byte code")
ENVIRONMENT = _used(_JINJA_BITS, "AnsibleEnvironment", "has the attribute _debuggable_template_source")
DEBUGGABLE = _used(
    _JINJA_BITS, "AnsibleEnvironment._debuggable_template_source", "if it is set, no byte code is stored"
)
COMPILE_CONTEXT = _used(_JINJA_BITS, "_TemplateCompileContext", "a template's context belongs to its identity")
CURRENT_CONTEXT = _used(
    _JINJA_BITS,
    "_TemplateCompileContext.current",
    "a template's context belongs to its identity",
    source="ansible/module_utils/_internal/_ambient_context.py:AmbientContextBase.current",
)
ESCAPE_BACKSLASHES = _used(
    _JINJA_BITS, "_TemplateCompileContext.escape_backslashes", "changes the byte code of a template"
)
TEMPLATE_EXPRESSION = _used(_JINJA_BITS, "TemplateExpression", "wraps the byte code of an expression")
TEMPLATE_CLASS = _used(_JINJA, "Environment.template_class", "the class of a template that is made from byte code")
FROM_CODE = _used(_JINJA, "Template.from_code", "makes a template from byte code")
MAKE_GLOBALS = _used(_JINJA, "Environment.make_globals", "the global names of a template that is made from byte code")
#: The attributes of Jinja's environment that change how Jinja reads a template's text.
SYNTAX = tuple(
    _used(_JINJA, f"Environment.{name}", "belongs to a template's identity")
    for name in (
        *("block_start_string", "block_end_string", "variable_start_string", "variable_end_string"),
        *("comment_start_string", "comment_end_string", "line_statement_prefix", "line_comment_prefix"),
        *("trim_blocks", "lstrip_blocks", "newline_sequence", "keep_trailing_newline", "optimized", "is_async"),
    )
)

# --- Used by parse_cache.py and playbook_server.py to load plugins ----------------------------------------------------

_LOADER = "ansible.plugins.loader"
LOADER_GLOB = _replaced(_LOADER, "glob", "lists each folder of plugins once in a run")
PLUGIN_LOADER = _used(_LOADER, "PluginLoader", "the type of the loaders whose folders each run computes again")
LOADER_CONFIG = _used(_LOADER, "PluginLoader.config", "the folders of a loader; some are in the run's private folder")
LOADER_PACKAGE = _used(_LOADER, "PluginLoader.package", "the package of a loader's plugins")
FILTER_LOADER = _used(_LOADER, "filter_loader", "imports Ansible's filters before the fork")
TEST_LOADER = _used(_LOADER, "test_loader", "imports Ansible's tests before the fork")
LOAD_MODULE_SOURCE = _replaced(
    _LOADER, "PluginLoader._load_module_source", "makes a provider's plugin take precedence over Ansible's"
)

# --- Used by playbook_server.py to compute again what Ansible computed when it was imported ---------------------------

_MANAGER = "ansible.config.manager"
CONFIG = _used("ansible.constants", "config", "the source of all constants")
CONFIG_FILE = _used(
    "ansible.constants",
    "CONFIG_FILE",
    "a server refuses runs after it has changed",
    source="ansible/config/manager.py:ConfigManager._config_file",
)
DEFINITIONS = _used(_MANAGER, "ConfigManager.get_configuration_definitions", "lists the constants")
CONFIG_VALUE = _used(_MANAGER, "ConfigManager.get_config_value", "computes a constant for the run's folder")
LOCAL_TMP = _used(
    "ansible.constants",
    "DEFAULT_LOCAL_TMP",
    "the folder of a run's payloads",
    source="ansible/config/base.yml:DEFAULT_LOCAL_TMP",
)
RANDOM_INT = _replaced("ansible.utils.vars", "random_int", "gives each run different ids")
CUR_ID = _replaced("ansible.utils.vars", "cur_id", "gives each run different ids")
CLEANUP_TMP_FILE = _used(
    "ansible.utils.path", "cleanup_tmp_file", "a run must not remove the server's temporary folder"
)
CHECK_BLOCKING_IO = _used("ansible.cli", "check_blocking_io", "the first step of ansible-playbook")
INITIALIZE_LOCALE = _used("ansible.cli", "initialize_locale", "the second step of ansible-playbook")
PLAYBOOK_MAIN = _used("ansible.cli.playbook", "main", "the third step of ansible-playbook")

# --- Used by tasks.py to run Ansible tasks without a fork -------------------------------------------------------------

_WORKER = "ansible.executor.process.worker"
STRATEGY_WORKER = _replaced(
    "ansible.plugins.strategy", "WorkerProcess", "runs an Ansible task in the run's own process"
)
POLL_INTERVAL = _replaced(
    "ansible.constants",
    "DEFAULT_INTERNAL_POLL_INTERVAL",
    "shortens the wait for the result of an Ansible task",
    source="ansible/config/base.yml:DEFAULT_INTERNAL_POLL_INTERVAL",
)
WORKER = _used(_WORKER, "WorkerProcess", "the class that our worker extends")
WORKER_START = _used(_WORKER, "WorkerProcess.start", "forks, which only a play of several hosts needs")
WORKER_RUN = _used(_WORKER, "WorkerProcess.run", "runs the Ansible task")
WORKER_DETACH = _replaced(_WORKER, "WorkerProcess._detach", "keeps the output of the run")
WORKER_HARD_EXIT = _replaced(
    _WORKER, "WorkerProcess._hard_exit", "an Ansible task that crashes must not end the run's process"
)
WORKER_TASK = _used(_WORKER, "WorkerProcess._task", "copied for each Ansible task")
WORKER_HOST = _used(_WORKER, "WorkerProcess._host", "copied for each Ansible task")
WORKER_TASK_VARS = _used(_WORKER, "WorkerProcess._task_vars", "copied for each Ansible task")
WORKER_DISPLAY = _replaced(_WORKER, "display", "displays without the queue of a fork")
WORKER_SIGNAL = _replaced(_WORKER, "signal", "keeps the signal handlers of the run")
WORKER_SYS = _replaced(_WORKER, "sys", "keeps the output of the run")
SET_QUEUE = _used("ansible.utils.display", "Display.set_queue", "only a fork needs it")
TASK_COPY = _used("ansible.playbook.task", "Task.copy", "copies an Ansible task, so that it cannot change the play")
TASK_PARENT = _used("ansible.playbook.task", "Task._parent", "gives the copy its parent in the play")

#: All private names that this module defines above.
NAMES: tuple[PrivateName, ...] = (
    *(value for value in vars().copy().values() if isinstance(value, PrivateName)),
    *SYNTAX,
)
