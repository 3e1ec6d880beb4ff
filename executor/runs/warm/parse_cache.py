"""Shares parsed YAML and compiled templates between warm runs, so that each run need not parse and compile them again.

A warm run is a fork of a server process that has already imported Ansible. A document is the result of parsing a YAML
text. It is stored under a key that contains the file's name and text, so a changed file is parsed again. The key of a
template's byte code contains the template's text and the settings that change the byte code. Documents and byte code
depend only on the values in their keys. The parameters of a job and the result of a run are never stored.

The module `patches` lists the names of Ansible, Jinja and PyYAML that are read or replaced here. `get_value` returns
what a name refers to, for example the class `DataLoader`. `set_value` replaces it in this process.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib.util
import marshal
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

from executor.runs.warm import patches

#: The attributes of Jinja's environment that change how Jinja reads a template's text.
SYNTAX_ATTRIBUTES = tuple(name.attribute for name in patches.JINJA_SYNTAX)
#: The path of community.proxmox below a folder of Python's import path.
COLLECTION_PATH_PARTS = ("ansible_collections", "community", "proxmox")
#: Name of the file with the byte code of the templates of all runs. The file is in the server's private folder.
BYTE_CODE_FILE = "templates"
#: Maximum number of templates in BYTE_CODE_FILE. It limits the size of the file if the text of some templates differs
#: in each run. Our playbooks have a few hundred templates.
MAX_TEMPLATES = 4000

#: The key under which a parsed document, or the byte code of a template, is stored.
Key = tuple[Any, ...]


class ParsedDocuments:
    """The YAML documents that the server parses before the fork.

    The documents are our playbooks, roles and inventories, the documentation of plugins, and the routing tables of
    collections. A routing table states which plugins of a collection were renamed or moved.
    """

    def __init__(self) -> None:
        #: Returns the data tags of a text: values that Ansible attaches to the text, for example its file's name.
        self._get_data_tags = patches.TAGS.get_value()
        self._original_yaml_load = patches.YAML_LOAD.get_value()
        self._parsed_documents: dict[Key, Any] = {}

    def parse_all(self, files: Iterable[Path]) -> None:
        """Parse and store all documents, with the functions of Ansible that a run uses.

        `files` are our playbooks, roles and inventories.
        """
        data_loader_class = patches.DATA_LOADER.get_value()
        patches.YAML_LOAD.set_value(self._parse_and_store)
        for file in files:
            with contextlib.suppress(Exception):  # the run that reads this file reports the error
                # cache="none": without Ansible's own cache. unsafe=True: without a copy of the document.
                # trusted_as_template=True: Ansible evaluates templates in the document.
                data_loader_class().load_from_file(str(file), cache="none", unsafe=True, trusted_as_template=True)
        for parse_documents in (self._parse_documentation, self._parse_routing_tables):
            with contextlib.suppress(Exception):
                parse_documents()
        patches.YAML_LOAD.set_value(self._original_yaml_load)

    def install(self) -> None:
        """Make Ansible in this process use the parsed documents.

        Each document is used only once, because Ansible may change it.
        """
        patches.YAML_LOAD.set_value(self._get_or_parse)
        load_from_file = patches.LOAD_FROM_FILE.get_value()

        def load_uncopied(loader: Any, file_name: str, cache: str = "all", unsafe: bool = False, **options: Any) -> Any:
            """Load a file as Ansible does, but return the parsed document itself instead of a copy.

            With Ansible's defaults, `cache="all"` and `unsafe=False`, Ansible keeps the document in `_FILE_CACHE` and
            returns a copy. With `cache="none"`, Ansible does not keep the document, so no copy is needed. With
            `unsafe=True`, Ansible makes no copy.
            """
            if unsafe or cache != "all" or loader.path_dwim(file_name) in loader._FILE_CACHE:
                return load_from_file(loader, file_name, cache=cache, unsafe=unsafe, **options)
            return load_from_file(loader, file_name, cache="none", unsafe=True, **options)

        patches.LOAD_FROM_FILE.set_value(load_uncopied)

    def _parse_documentation(self) -> None:
        """Parse the documentation of the plugins that each run loads, as Ansible does it."""
        origin_tag, trusted_tag = patches.ORIGIN.get_value(), patches.TRUSTED_AS_TEMPLATE.get_value()
        yaml_loader, fragment_loader = patches.YAML_LOADER.get_value(), patches.FRAGMENT_LOADER.get_value()
        add_fragments = patches.ADD_FRAGMENTS.get_value()
        plugin_modules = [module for name, module in sys.modules.items() if name.startswith("ansible.plugins.")]
        plugin_files = [
            *(str(module.__file__) for module in plugin_modules),
            *_callback_files("ansible.plugins.callback"),
            *_callback_files("ansible_runner.display_callback.callback"),
        ]
        for path in dict.fromkeys(plugin_files):  # without duplicates
            trusted_text = trusted_tag().tag(_read_documentation(path))
            text = origin_tag(path=path).tag(trusted_text)
            if documentation := self._parse_and_store(text, Loader=yaml_loader):
                # Parses the documentation that this plugin shares with others. `add_fragments` calls `yaml.load`, which
                # is now `_parse_and_store`.
                add_fragments(documentation, path, fragment_loader=fragment_loader)

    def _parse_routing_tables(self) -> None:
        """Parse the routing tables of Ansible and community.proxmox."""
        import ansible  # noqa: PLC0415  the server has already imported it

        files = [Path(ansible.__path__[0], "config", "ansible_builtin_runtime.yml")]
        files += [Path(root, *COLLECTION_PATH_PARTS, "meta", "runtime.yml") for root in sys.path]
        parse_routing_table = patches.ROUTING_TO_DICT.get_value()
        for file in files:
            if file.is_file():
                parse_routing_table(file.read_bytes(), content_id=None)  # Ansible does not use `content_id`

    def _make_key(self, text: Any, loader: type) -> Key:
        untagged_text = text if isinstance(text, bytes) else str(text)
        return (loader, untagged_text, self._get_data_tags(text))  # one of Ansible's data tags contains the file's name

    def _parse_and_store(self, stream: Any, Loader: type) -> Any:
        """Parse a document and store a copy of it. This method replaces `yaml.load` before the fork."""
        document = self._original_yaml_load(stream, Loader=Loader)
        self._parsed_documents[self._make_key(stream, Loader)] = copy.deepcopy(document)
        return document

    def _get_or_parse(self, stream: Any, Loader: type) -> Any:
        """Return the stored document, or parse it if it is not stored. This method replaces `yaml.load` in a run."""
        if isinstance(stream, (str, bytes)):
            key = self._make_key(stream, Loader)
            if key in self._parsed_documents:
                return self._parsed_documents.pop(key)
        return self._original_yaml_load(stream, Loader=Loader)


def _callback_files(package: str) -> list[str]:
    """Return the files of a package's callback plugins.

    Ansible reads their documentation without importing them, so `sys.modules` may lack them.
    """
    top_package, *subpackages = package.split(".")
    spec = importlib.util.find_spec(top_package)
    if spec is None:
        return []
    folders = [Path(top_folder, *subpackages) for top_folder in spec.submodule_search_locations or []]
    return [str(file) for folder in folders for file in folder.glob("*.py")]


def _read_documentation(path: str) -> str:
    """Return the value of DOCUMENTATION in a plugin's file, without importing the file."""
    for node in ast.parse(Path(path).read_bytes()).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "DOCUMENTATION"
        ):
            return str(ast.literal_eval(node.value))
    return ""


class CompiledTemplates:
    """The byte code of templates. A run loads it from a file at its start, and saves new byte code at its end."""

    def __init__(self, file: Path) -> None:
        self._byte_code_file = file
        self._stored_byte_code: dict[Key, bytes] = _read_byte_code(self._byte_code_file)  #: the byte code in the file
        self._code_objects: dict[Key, CodeType] = {}  #: the byte code that this run has used, decoded
        self._new_byte_code: dict[Key, bytes] = {}  #: the byte code that this run has compiled
        self._expression_key: Key | None = None  #: the key of the expression that Jinja is compiling

    def install(self) -> None:
        """Make Jinja use the stored byte code in this run."""
        # ansible_basedir=None: without a folder of templates. The environment is created only to read its attribute.
        if patches.ENVIRONMENT.get_value()(ansible_basedir=None)._debuggable_template_source:
            return  # Ansible compiles templates for a debugger, so stored byte code must not be used
        get_current_context = patches.CURRENT_CONTEXT.get_value()
        expression_class = patches.TEMPLATE_EXPRESSION.get_value()
        original_compile = patches.COMPILE.get_value()
        original_compile_expression = patches.COMPILE_EXPRESSION.get_value()

        def make_key(env: Any, kind: str, source: str) -> Key:
            context = get_current_context(optional=True)
            escapes_backslashes = context.escape_backslashes if context else None
            syntax = [getattr(env, name) for name in SYNTAX_ATTRIBUTES]
            return (kind, type(env).__qualname__, str(source), escapes_backslashes, *syntax)

        def compile_template(env: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
            # For an expression, `source` is a syntax tree, from which no key can be made. So `compile_expression` below
            # has made the key from the text of the expression, and has stored it in `_expression_key`.
            key = self._expression_key
            if isinstance(source, str) and not args and not kwargs:
                key = make_key(env, "template", source)
            self._expression_key = None
            if key is None:
                return original_compile(env, source, *args, **kwargs)
            if not self._has_byte_code(key):
                self._code_objects[key] = original_compile(env, source)
                self._new_byte_code[key] = marshal.dumps(self._code_objects[key])
            return self._get_byte_code(key)

        def compile_expression(env: Any, source: str, undefined_to_none: bool = True) -> Any:
            key = make_key(env, "expression", source)
            if self._has_byte_code(key):
                global_names = env.make_globals(None)  # only the names that are global in the environment
                # uptodate=None: Jinja does not check whether the template has changed.
                template = env.template_class.from_code(env, self._get_byte_code(key), global_names, uptodate=None)
                return expression_class(template, undefined_to_none)
            self._expression_key = key
            try:
                return original_compile_expression(env, source, undefined_to_none)
            finally:
                self._expression_key = None

        patches.COMPILE.set_value(compile_template)
        patches.COMPILE_EXPRESSION.set_value(compile_expression)

    def save(self) -> None:
        """Add to the file the byte code that this process has compiled.

        If the file would have more than MAX_TEMPLATES templates, it is not changed. If a play has several hosts,
        Ansible forks this process. The byte code that a fork compiles is not saved.
        """
        if not self._new_byte_code:
            return
        stored_byte_code = _read_byte_code(self._byte_code_file)  # other runs may have changed the file
        all_byte_code = stored_byte_code | self._new_byte_code
        if len(stored_byte_code) < len(all_byte_code) <= MAX_TEMPLATES:
            _write_byte_code(self._byte_code_file, all_byte_code)

    def _has_byte_code(self, key: Key) -> bool:
        return key in self._code_objects or key in self._stored_byte_code

    def _get_byte_code(self, key: Key) -> CodeType:
        """Return the byte code of a stored or compiled template.

        Stored byte code is decoded here and not in `__init__`, because a run uses only a few dozen templates.
        """
        if key not in self._code_objects:
            encoded = self._stored_byte_code[key]
            self._code_objects[key] = marshal.loads(encoded)  # noqa: S302  our own file in a private folder
        return self._code_objects[key]


def cache_plugin_folder_listings() -> None:
    """Make Ansible list each folder of plugins only once in a run.

    Without this function, Ansible lists a folder again each time it looks for a plugin.
    """
    import glob  # noqa: PLC0415  used only here

    list_folder_once = cache(os.listdir)

    def iglob(pattern: str) -> Iterable[str]:
        """Return the paths that match the pattern. For a pattern like `<folder>/<plugin>.*`, list the folder once."""
        folder, name = os.path.split(pattern)
        prefix = name.removesuffix("*")
        if glob.has_magic(folder + prefix) or not prefix.endswith(".") or not os.path.isdir(folder):
            return glob.iglob(pattern)
        return [os.path.join(folder, entry) for entry in list_folder_once(folder) if entry.startswith(prefix)]

    patches.LOADER_GLOB.set_value(SimpleNamespace(glob=glob.glob, iglob=iglob))


def _read_byte_code(file: Path) -> dict[Key, bytes]:
    try:
        code: dict[Key, bytes] = marshal.loads(file.read_bytes())  # noqa: S302  our own file in a private folder
    except (OSError, ValueError, EOFError, TypeError):
        return {}
    return code


def _write_byte_code(file: Path, code: dict[Key, bytes]) -> None:
    """Replace the file atomically.

    If the disk is full, the old file remains, and the next run compiles the new templates again.
    """
    new_file = file.with_name(f"{file.name}.{os.getpid()}")
    with contextlib.suppress(OSError, ValueError):
        new_file.write_bytes(marshal.dumps(code))
        new_file.rename(file)
