"""Lists every private name of Ansible, Jinja, PyYAML and ansible-runner that warm runs replace or use.

A warm run is a fork of a server process that has already imported Ansible. A cold run is a new ansible-playbook
process. We call all names of this list private, even a documented name such as `yaml.load`. Any release of a project
may change its private names. So all runs are cold if the installed ansible-core was not tested with warm runs, or if a
name of this list is missing.

A payload is a zip file of an Ansible module and the files that the module imports. Each run has a folder for its
credentials and temporary files. The texts below call it the run's private folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: The series of ansible-core with which warm runs were tested. A series is the first two numbers of a release. The test
#: (tests/integration/runs/test_warm.py) compares the events of warm runs with the events of cold runs. With any other
#: series, all runs are cold.
TESTED_SERIES = ("2.19", "2.21")


@dataclass(frozen=True, kw_only=True)
class PrivateName:
    """A private name that warm runs need. `name` is its dotted path in `module`, such as `DataLoader.path_dwim`."""

    module: str
    name: str
    purpose: str  #: what warm runs use the name for, or what our replacement of its value does
    is_replaced: bool = False  #: True if warm runs replace the value of the name
    source: str = ""  #: `<file>:<name>` of the definition, if the name is not defined in the source file of `module`
    series: tuple[str, ...] = TESTED_SERIES  #: the series of ansible-core in which the name exists

    @property
    def attribute(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]

    def get_value(self) -> Any:
        """Import the module and return the value of the name."""
        return getattr(self._owner(), self.attribute)

    def set_value(self, value: Any) -> None:
        """Set the value of the name."""
        setattr(self._owner(), self.attribute, value)

    def is_defined(self, read_file: Callable[[str], str]) -> bool:
        """True when the text of the name's source file contains the definition of the name.

        `read_file` returns the text of a file, or '' when the file does not exist. The text is searched, because
        importing Ansible would take a second.
        """
        source_file, _, source_name = self.source.partition(":")
        module_path = self.module.replace(".", "/")
        if source_file:
            text = read_file(source_file)
        else:
            text = read_file(f"{module_path}.py") or read_file(f"{module_path}/__init__.py")
        class_name, _, name = (source_name or self.name).rpartition(".")
        if not class_name:
            return re.search(_TOP_LEVEL_DEFINITION.format(name=name), text, re.MULTILINE) is not None
        class_start = re.search(rf"^class {class_name}\b", text, re.MULTILINE)
        if class_start is None:
            return False
        class_end = _TOP_LEVEL_LINE.search(text, class_start.end())
        class_text = text[class_start.start() : class_end.start() if class_end else len(text)]
        return re.search(_MEMBER_DEFINITION.format(name=name), class_text, re.MULTILINE) is not None

    def _owner(self) -> Any:
        """Return the module or class in which the last part of the name is defined."""
        owner: Any = importlib.import_module(self.module)
        for part in self.name.split(".")[:-1]:
            owner = getattr(owner, part)
        return owner


#: Matches the definition or the import of `name` at the top level of a module.
_TOP_LEVEL_DEFINITION = r"^(?:def|class) {name}\b|^{name}\b\s*[:=]|^(?:from \S+ )?import [^#\n]*\b{name}\b"
#: Matches the beginning of a line without indentation. The first such line after a class is the end of the class.
_TOP_LEVEL_LINE = re.compile(r"^\S", re.MULTILINE)
#: Matches the definition of `name` in a class: a method, a class attribute or an attribute of `self`.
_MEMBER_DEFINITION = r"^    def {name}\b|^    {name}\b\s*[:=]|\bself\.{name}\b\s*[:=]"


def _used_private_name(module: str, name: str, purpose: str, *, source: str = "") -> PrivateName:
    """Return a private name whose value warm runs use, but do not replace."""
    return PrivateName(module=module, name=name, purpose=purpose, source=source)


def _replaced_private_name(module: str, name: str, purpose: str, *, source: str = "") -> PrivateName:
    """Return a private name whose value warm runs replace."""
    return PrivateName(module=module, name=name, purpose=purpose, is_replaced=True, source=source)


# --- Used by module_run.py and payloads.py to run modules -------------------------------------------------------------

_LOCAL_MODULE = "ansible.plugins.connection.local"
EXEC_COMMAND = _replaced_private_name(
    _LOCAL_MODULE, "Connection.exec_command", "runs the modules of community.proxmox in the process of the run"
)
CONNECTION_CWD = _used_private_name(_LOCAL_MODULE, "Connection.cwd", "the working directory of a module")
CONNECTION_BECOME = _used_private_name(
    "ansible.plugins.connection",
    "ConnectionBase.become",
    "is set for a module that must run as another user, so this module cannot run in the process of the run",
)
RUN_MODULE = _used_private_name(
    "ansible.module_utils._internal._ansiballz._loader", "run_module", "runs a module from the installed files"
)
MODIFY_MODULE = _used_private_name(
    "ansible.executor.module_common", "modify_module", "makes the payload of a module before the fork"
)
COMPILE_MODULE_AST = _replaced_private_name(
    "ansible.executor.module_common", "_compile_module_ast", "parses a file once for the payloads of all modules"
)
TEMPLAR = _used_private_name("ansible.template", "Templar", "evaluates the path of a module's interpreter")
ZIP_DATA = _used_private_name(
    "ansible.executor.module_common", "_CachedModule.zip_data", "a payload in base64, read from Ansible's cache"
)
_INTERNAL_MODULE = "ansible.module_utils._internal"
IS_CONTROLLER = _replaced_private_name(
    _INTERNAL_MODULE, "is_controller", "False while a module runs, so that its warnings are in its result"
)
IMPORT_CONTROLLER_MODULE = _replaced_private_name(
    _INTERNAL_MODULE, "import_controller_module", "imports nothing while a module runs, as in a module's own process"
)
_TRACEBACK_MODULE = "ansible.module_utils._internal._traceback"
IS_TRACEBACK_ENABLED = _replaced_private_name(
    _TRACEBACK_MODULE,
    "_is_traceback_enabled",
    "decides whether tracebacks are shown; while a module runs, the parameters of this module decide",
)
IS_MODULE_TRACEBACK_ENABLED = _used_private_name(
    _TRACEBACK_MODULE,
    "_is_module_traceback_enabled",
    "the function that replaces IS_TRACEBACK_ENABLED while a module runs",
)
MODULE_TRACEBACK_EVENTS = _replaced_private_name(
    _TRACEBACK_MODULE,
    "_module_tracebacks_enabled_events",
    "the kinds of events for which a module returns tracebacks, emptied before each module",
)
_WARNINGS_MODULE = "ansible.module_utils.common.warnings"
MODULE_WARNINGS = _replaced_private_name(
    _WARNINGS_MODULE, "_global_warnings", "the warnings of a module, emptied before each module"
)
MODULE_DEPRECATIONS = _replaced_private_name(
    _WARNINGS_MODULE, "_global_deprecations", "the deprecations of a module, emptied before each module"
)
_BASIC_MODULE = "ansible.module_utils.basic"
MODULE_ARGUMENTS = _replaced_private_name(
    _BASIC_MODULE, "_ANSIBLE_ARGS", "the parameters of a module as JSON, emptied before each module"
)
MODULE_PROFILE = _replaced_private_name(
    _BASIC_MODULE, "_ANSIBLE_PROFILE", "the format of a module's parameters, emptied before each module"
)
PARSED_MODULE_ARGUMENTS = _replaced_private_name(
    _BASIC_MODULE, "_PARSED_MODULE_ARGS", "the parsed parameters of a module, emptied before each module"
)

# --- Used by parse_cache.py to share parsed YAML ----------------------------------------------------------------------

_TAG_CLASSES_MODULE = "ansible._internal._datatag._tags"
_DATA_LOADER_MODULE = "ansible.parsing.dataloader"
YAML_LOAD = _replaced_private_name("yaml", "load", "returns a document that was parsed before the fork")
DATA_LOADER = _used_private_name(_DATA_LOADER_MODULE, "DataLoader", "parses our playbooks and roles as a run does")
LOAD_FROM_FILE = _replaced_private_name(
    _DATA_LOADER_MODULE, "DataLoader.load_from_file", "returns a parsed document itself, not a copy of it"
)
FILE_CACHE = _used_private_name(
    _DATA_LOADER_MODULE, "DataLoader._FILE_CACHE", "the documents that a run has already read"
)
PATH_DWIM = _used_private_name(_DATA_LOADER_MODULE, "DataLoader.path_dwim", "computes a key of _FILE_CACHE")
TAGS = _used_private_name(
    "ansible.module_utils._internal._datatag",
    "AnsibleTagHelper.tags",
    "returns the data tags of a text; a parsed document is found by its text and these tags",
)
ORIGIN = _used_private_name(
    _TAG_CLASSES_MODULE, "Origin", "the data tag that names the file from which a text was read"
)
TRUSTED_AS_TEMPLATE = _used_private_name(
    _TAG_CLASSES_MODULE, "TrustedAsTemplate", "the data tag of a text whose templates are evaluated"
)
YAML_LOADER = _used_private_name(
    "ansible.parsing.yaml.loader", "AnsibleLoader", "the loader of a plugin's documentation"
)
FRAGMENT_LOADER = _used_private_name(
    "ansible.plugins.loader", "fragment_loader", "finds documentation that plugins share"
)
ADD_FRAGMENTS = _used_private_name(
    "ansible.utils.plugin_docs", "add_fragments", "parses documentation that plugins share"
)
ROUTING_TO_DICT = _used_private_name(
    "ansible.utils.collection_loader._collection_meta", "_meta_yml_to_dict", "parses a collection's routing table"
)
RUNNER_CALLBACK = _used_private_name(
    "ansible_runner.display_callback.callback.awx_display",
    "CallbackModule",
    "a plugin whose documentation each run reads",
)

# --- Used by parse_cache.py to share compiled templates ---------------------------------------------------------------

_JINJA_BITS_MODULE = "ansible._internal._templating._jinja_bits"
_JINJA_MODULE = "jinja2.environment"
COMPILE = _replaced_private_name(
    _JINJA_BITS_MODULE,
    "AnsibleEnvironment.compile",
    "returns the byte code of a template that an earlier run has compiled",
    source="jinja2/environment.py:Environment.compile",
)
COMPILE_EXPRESSION = _replaced_private_name(
    _JINJA_BITS_MODULE,
    "AnsibleEnvironment.compile_expression",
    "returns the byte code of an expression that an earlier run has compiled",
)
ENVIRONMENT = _used_private_name(
    _JINJA_BITS_MODULE, "AnsibleEnvironment", "the class with the attribute _debuggable_template_source"
)
DEBUGGABLE = _used_private_name(
    _JINJA_BITS_MODULE,
    "AnsibleEnvironment._debuggable_template_source",
    "if this attribute is set, runs neither read nor save byte code",
)
COMPILE_CONTEXT = _used_private_name(
    _JINJA_BITS_MODULE,
    "_TemplateCompileContext",
    "the settings with which a template is compiled",
)
CURRENT_CONTEXT = _used_private_name(
    _JINJA_BITS_MODULE,
    "_TemplateCompileContext.current",
    "returns the settings with which the current template is compiled",
    source="ansible/module_utils/_internal/_ambient_context.py:AmbientContextBase.current",
)
ESCAPE_BACKSLASHES = _used_private_name(
    _JINJA_BITS_MODULE, "_TemplateCompileContext.escape_backslashes", "changes the byte code of a template"
)
TEMPLATE_EXPRESSION = _used_private_name(
    _JINJA_BITS_MODULE, "TemplateExpression", "wraps the byte code of an expression"
)
TEMPLATE_CLASS = _used_private_name(
    _JINJA_MODULE, "Environment.template_class", "the class of a template that is made from byte code"
)
FROM_CODE = _used_private_name(_JINJA_MODULE, "Template.from_code", "makes a template from byte code")
MAKE_GLOBALS = _used_private_name(
    _JINJA_MODULE, "Environment.make_globals", "the global names of a template that is made from byte code"
)
#: The attributes of Jinja's environment that change how Jinja reads a template's text.
JINJA_SYNTAX = tuple(
    _used_private_name(_JINJA_MODULE, f"Environment.{name}", "a part of the key of a template's byte code")
    for name in (
        *("block_start_string", "block_end_string", "variable_start_string", "variable_end_string"),
        *("comment_start_string", "comment_end_string", "line_statement_prefix", "line_comment_prefix"),
        *("trim_blocks", "lstrip_blocks", "newline_sequence", "keep_trailing_newline", "optimized", "is_async"),
    )
)

# --- Used by parse_cache.py and playbook_server.py to load plugins ----------------------------------------------------

_PLUGIN_LOADER_MODULE = "ansible.plugins.loader"
LOADER_GLOB = _replaced_private_name(_PLUGIN_LOADER_MODULE, "glob", "lists each folder of plugins once in a run")
_COLLECTION_FINDER_MODULE = "ansible.utils.collection_loader._collection_finder"
COLLECTION_FINDER = _used_private_name(
    _COLLECTION_FINDER_MODULE, "_AnsibleCollectionFinder", "imports the plugins of our collection before the fork"
)
INSTALL_COLLECTION_FINDER = _used_private_name(
    _COLLECTION_FINDER_MODULE, "_AnsibleCollectionFinder._install", "lets Python import modules from collections"
)
REMOVE_COLLECTION_FINDER = _used_private_name(
    _COLLECTION_FINDER_MODULE, "_AnsibleCollectionFinder._remove", "lets each run install its own collection finder"
)
COLLECTIONS_PATHS = _used_private_name(
    "ansible.constants",
    "COLLECTIONS_PATHS",
    "the folders in which Ansible searches for collections",
    source="ansible/config/base.yml:COLLECTIONS_PATHS",
)
PLUGIN_LOADER = _used_private_name(
    _PLUGIN_LOADER_MODULE,
    "PluginLoader",
    "the class of Ansible's plugin loaders; each run computes their folders again",
)
LOADER_CONFIG = _used_private_name(
    _PLUGIN_LOADER_MODULE,
    "PluginLoader.config",
    "the folders of a loader, some of which are in the run's private folder",
)
LOADER_PACKAGE = _used_private_name(_PLUGIN_LOADER_MODULE, "PluginLoader.package", "the package of a loader's plugins")
FILTER_LOADER = _used_private_name(
    _PLUGIN_LOADER_MODULE, "filter_loader", "imports Ansible's Jinja filters before the fork"
)
TEST_LOADER = _used_private_name(_PLUGIN_LOADER_MODULE, "test_loader", "imports Ansible's Jinja tests before the fork")
LOAD_MODULE_SOURCE = _replaced_private_name(
    _PLUGIN_LOADER_MODULE,
    "PluginLoader._load_module_source",
    "makes a plugin that the provider has added take precedence over Ansible's plugin of the same name",
)

# --- Used by playbook_server.py to compute again what Ansible computed when it was imported ---------------------------

_CONFIG_MODULE = "ansible.config.manager"
CONFIG = _used_private_name("ansible.constants", "config", "the object from which Ansible computes its constants")
CONFIG_FILE = _used_private_name(
    "ansible.constants",
    "CONFIG_FILE",
    "the path of the file ansible.cfg; after a change of this file, the server refuses runs",
    source="ansible/config/manager.py:ConfigManager._config_file",
)
DEFINITIONS = _used_private_name(_CONFIG_MODULE, "ConfigManager.get_configuration_definitions", "lists the constants")
CONFIG_VALUE = _used_private_name(
    _CONFIG_MODULE,
    "ConfigManager.get_config_value",
    "computes a constant again, because it can contain the path of the run's private folder",
)
LOCAL_TMP = _used_private_name(
    "ansible.constants",
    "DEFAULT_LOCAL_TMP",
    "the folder of a run's payloads",
    source="ansible/config/base.yml:DEFAULT_LOCAL_TMP",
)
RANDOM_INT = _replaced_private_name(
    "ansible.utils.vars", "random_int", "a random part of the ids of plays and Ansible tasks, which differs in each run"
)
CUR_ID = _replaced_private_name(
    "ansible.utils.vars",
    "cur_id",
    "the counter in the ids of plays and Ansible tasks, which is 0 at the start of a run",
)
CLEANUP_TMP_FILE = _used_private_name(
    "ansible.utils.path",
    "cleanup_tmp_file",
    "is removed from the functions that a run calls at its exit, because it removes the server's temporary folder",
)
CHECK_BLOCKING_IO = _used_private_name("ansible.cli", "check_blocking_io", "the first step of ansible-playbook")
INITIALIZE_LOCALE = _used_private_name("ansible.cli", "initialize_locale", "the second step of ansible-playbook")
PLAYBOOK_MAIN = _used_private_name("ansible.cli.playbook", "main", "the third step of ansible-playbook")

# --- Used by tasks.py to run Ansible tasks without a fork -------------------------------------------------------------

_WORKER_MODULE = "ansible.executor.process.worker"
STRATEGY_WORKER_CLASS = _replaced_private_name(
    "ansible.plugins.strategy",
    "WorkerProcess",
    "the class whose instances execute Ansible tasks; 'our worker', a subclass in tasks.py, does not fork",
)
POLL_INTERVAL = _replaced_private_name(
    "ansible.constants",
    "DEFAULT_INTERNAL_POLL_INTERVAL",
    "makes the wait for the result of an Ansible task shorter",
    source="ansible/config/base.yml:DEFAULT_INTERNAL_POLL_INTERVAL",
)
WORKER_CLASS = _used_private_name(_WORKER_MODULE, "WorkerProcess", "Ansible's worker, which our worker extends")
WORKER_START = _used_private_name(
    _WORKER_MODULE, "WorkerProcess.start", "forks a process; is called only in a play with several hosts"
)
WORKER_RUN = _used_private_name(_WORKER_MODULE, "WorkerProcess.run", "runs the Ansible task")
WORKER_DETACH = _replaced_private_name(
    _WORKER_MODULE, "WorkerProcess._detach", "does not close the standard output of the run"
)
WORKER_HARD_EXIT = _replaced_private_name(
    _WORKER_MODULE, "WorkerProcess._hard_exit", "lets the run's process continue when an Ansible task crashes"
)
WORKER_TASK = _used_private_name(_WORKER_MODULE, "WorkerProcess._task", "the Ansible task, which our worker copies")
WORKER_HOST = _used_private_name(_WORKER_MODULE, "WorkerProcess._host", "the host, which our worker copies")
WORKER_TASK_VARS = _used_private_name(
    _WORKER_MODULE, "WorkerProcess._task_vars", "the variables of the Ansible task, which our worker copies"
)
WORKER_DISPLAY = _replaced_private_name(
    _WORKER_MODULE, "display", "writes messages directly, not to the queue that a fork uses"
)
WORKER_SIGNAL = _replaced_private_name(_WORKER_MODULE, "signal", "leaves the signal handlers of the run unchanged")
WORKER_SYS = _replaced_private_name(_WORKER_MODULE, "sys", "leaves the standard output and error of the run unchanged")
SET_QUEUE = _used_private_name(
    "ansible.utils.display",
    "Display.set_queue",
    "makes a fork send its messages to a queue; our worker uses a display whose set_queue does nothing",
)
TASK_COPY = _used_private_name(
    "ansible.playbook.task",
    "Task.copy",
    "copies an Ansible task; the execution of the copy does not change the play's own task",
)
TASK_PARENT = _used_private_name("ansible.playbook.task", "Task._parent", "gives the copy its parent in the play")

#: All private names that are defined above.
PRIVATE_NAMES: tuple[PrivateName, ...] = (
    *(value for value in vars().copy().values() if isinstance(value, PrivateName)),
    *JINJA_SYNTAX,
)
