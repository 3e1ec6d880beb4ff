"""Shares parsed YAML documents and compiled templates between warm runs, so that each run need not make them again.

A warm run is a fork of a server process that has already imported Ansible. A parsed document is stored under the name
and the text of its file, so a changed file is parsed again. A compiled template is stored under its text and the syntax
settings of Jinja. A document or a template depends on nothing else. No input and no result of a run is stored.
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

#: Names of the attributes of Jinja's environment that change how Jinja reads a template's text.
SYNTAX = tuple(name.attribute for name in patches.SYNTAX)
COLLECTION = ("ansible_collections", "community", "proxmox")
#: Name of the file with the byte code of the templates of all runs. It is in the folder that `payloads.store_in`
#: returns.
CODE_FILE = "templates"
#: Maximum number of stored templates. It limits the file if the text of some templates differs in each run. Our
#: playbooks have a few hundred templates.
MAX_TEMPLATES = 4000

Key = tuple[Any, ...]


class ParsedDocuments:
    """The YAML documents that the server parses before the fork.

    They are our playbooks and roles, the documentation of plugins, and the routing tables of collections. A routing
    table states which plugins of a collection were renamed or moved.
    """

    def __init__(self) -> None:
        self._tags_of = patches.TAGS.get()
        self._parse = patches.YAML_LOAD.get()
        self._known: dict[Key, Any] = {}

    def load(self, files: Iterable[Path]) -> None:
        """Parse the documents that a run reads, with the same calls of Ansible's functions as in a run."""
        loader = patches.DATA_LOADER.get()
        patches.YAML_LOAD.replace(self._parse_and_keep)
        for file in files:
            with contextlib.suppress(Exception):  # the run that reads this file reports the error
                loader().load_from_file(str(file), cache="none", unsafe=True, trusted_as_template=True)
        for parse in (self._load_documentation, self._load_routing):
            with contextlib.suppress(Exception):
                parse()
        patches.YAML_LOAD.replace(self._parse)

    def install(self) -> None:
        """Make Ansible in this process use the parsed documents.

        Each document is used only once, because Ansible may change it.
        """
        patches.YAML_LOAD.replace(self._take_parsed)
        load = patches.LOAD_FROM_FILE.get()

        def load_own(loader: Any, file_name: str, cache: str = "all", unsafe: bool = False, **options: Any) -> Any:
            """Load a file as Ansible does, but return the parsed document itself instead of a copy.

            The copy is not needed, because nothing else in this process uses the document.
            """
            if unsafe or cache != "all" or loader.path_dwim(file_name) in loader._FILE_CACHE:
                return load(loader, file_name, cache=cache, unsafe=unsafe, **options)
            return load(loader, file_name, cache="none", unsafe=True, **options)

        patches.LOAD_FROM_FILE.replace(load_own)

    def _load_documentation(self) -> None:
        """Parse the documentation of the plugins that each run loads, as Ansible does it."""
        origin, trusted = patches.ORIGIN.get(), patches.TRUSTED_AS_TEMPLATE.get()
        loader, fragment_loader = patches.YAML_LOADER.get(), patches.FRAGMENT_LOADER.get()
        add_fragments = patches.ADD_FRAGMENTS.get()
        loaded = [str(module.__file__) for name, module in sys.modules.items() if name.startswith("ansible.plugins.")]
        plugins = [
            *loaded,
            *_callbacks("ansible.plugins.callback"),
            *_callbacks("ansible_runner.display_callback.callback"),
        ]
        for path in dict.fromkeys(plugins):
            text = origin(path=path).tag(trusted().tag(_documentation_in(path)))
            if parsed := self._parse_and_keep(text, Loader=loader):
                add_fragments(parsed, path, fragment_loader=fragment_loader)

    def _load_routing(self) -> None:
        """Parse the routing tables of Ansible and community.proxmox."""
        import ansible  # noqa: PLC0415  the server has already imported it

        files = [Path(ansible.__path__[0], "config", "ansible_builtin_runtime.yml")]
        files += [Path(root, *COLLECTION, "meta", "runtime.yml") for root in sys.path]
        for file in files:
            if file.is_file():
                patches.ROUTING_TO_DICT.get()(file.read_bytes(), None)

    def _key(self, text: Any, loader: type) -> Key:
        return (loader, text if isinstance(text, bytes) else str(text), self._tags_of(text))

    def _parse_and_keep(self, stream: Any, Loader: type) -> Any:
        """Replace `yaml.load` before the fork: parse the document and store a copy of it."""
        parsed = self._parse(stream, Loader=Loader)
        self._known[self._key(stream, Loader)] = copy.deepcopy(parsed)
        return parsed

    def _take_parsed(self, stream: Any, Loader: type) -> Any:
        """Replace `yaml.load` in a run: return a stored document once, and parse every other document."""
        if isinstance(stream, (str, bytes)) and (key := self._key(stream, Loader)) in self._known:
            return self._known.pop(key)
        return self._parse(stream, Loader=Loader)


def _callbacks(package: str) -> list[str]:
    """Return the files of a package's callback plugins. Ansible reads their documentation without importing them."""
    top, *inner = package.split(".")
    spec = importlib.util.find_spec(top)
    roots = (spec.submodule_search_locations or []) if spec else []
    return [str(path) for root in roots for path in Path(root, *inner).glob("*.py")]


def _documentation_in(path: str) -> str:
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

    def __init__(self, store: Path) -> None:
        self._file = store / CODE_FILE
        self._known = _read(self._file)
        self._loaded: dict[Key, CodeType] = {}
        self._new: dict[Key, bytes] = {}
        self._expression_key: Key | None = None  #: the key of the expression that Jinja is compiling

    def install(self) -> None:
        """Make Jinja use the stored byte code in this process and its forks.

        The byte code that a fork compiles is not saved.
        """
        if patches.ENVIRONMENT.get()(ansible_basedir=None)._debuggable_template_source:
            return
        current_context, expression_class = patches.CURRENT_CONTEXT.get(), patches.TEMPLATE_EXPRESSION.get()
        compile_, compile_expression = patches.COMPILE.get(), patches.COMPILE_EXPRESSION.get()

        def key_of(env: Any, kind: str, source: str) -> Key:
            current = current_context(optional=True)
            escapes = current.escape_backslashes if current else None
            return (kind, type(env).__qualname__, str(source), escapes, *(getattr(env, name) for name in SYNTAX))

        def compile_by_text(env: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
            key = self._expression_key
            if isinstance(source, str) and not args and not kwargs:
                key = key_of(env, "template", source)
            self._expression_key = None
            if key is None:
                return compile_(env, source, *args, **kwargs)
            if key not in self._loaded and key not in self._known:
                self._loaded[key] = compile_(env, source)
                self._new[key] = marshal.dumps(self._loaded[key])
            return self._code(key)

        def compile_expression_by_text(env: Any, source: str, undefined_to_none: bool = True) -> Any:
            key = key_of(env, "expression", source)
            if key in self._loaded or key in self._known:
                template = env.template_class.from_code(env, self._code(key), env.make_globals(None), None)
                return expression_class(template, undefined_to_none)
            self._expression_key = key
            try:
                return compile_expression(env, source, undefined_to_none)
            finally:
                self._expression_key = None

        patches.COMPILE.replace(compile_by_text)
        patches.COMPILE_EXPRESSION.replace(compile_expression_by_text)

    def save(self) -> None:
        """Add the templates that this run has compiled to the file."""
        if not self._new:
            return
        known = _read(self._file)  # read the file again, because other runs may have changed it since the start
        if self._new.keys() - known.keys() and len(known | self._new) <= MAX_TEMPLATES:
            _write(self._file, known | self._new)

    def _code(self, key: Key) -> CodeType:
        """Return the byte code of a known template.

        It is decoded only now, because a run uses only a few dozen templates.
        """
        if key not in self._loaded:
            self._loaded[key] = marshal.loads(self._known[key])  # noqa: S302  our own file in a private folder
        return self._loaded[key]


def list_folders_once() -> None:
    """Make Ansible list each folder of plugins only once in a run. Without this, each look-up of a plugin lists it."""
    import glob  # noqa: PLC0415  used only here

    names_in = cache(os.listdir)

    def iglob(pattern: str) -> Iterable[str]:
        folder, name = os.path.split(pattern)
        stem = name.removesuffix("*")
        if glob.has_magic(folder + stem) or not stem.endswith(".") or not os.path.isdir(folder):
            return glob.iglob(pattern)
        return [os.path.join(folder, found) for found in names_in(folder) if found.startswith(stem)]

    patches.LOADER_GLOB.replace(SimpleNamespace(glob=glob.glob, iglob=iglob))


def _read(file: Path) -> dict[Key, bytes]:
    try:
        code: dict[Key, bytes] = marshal.loads(file.read_bytes())  # noqa: S302  our own file in a private folder
    except (OSError, ValueError, EOFError, TypeError):
        return {}
    return code


def _write(file: Path, code: dict[Key, bytes]) -> None:
    """Replace the file atomically.

    If the disk is full, keep the old file; the next run compiles the templates again.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    with contextlib.suppress(OSError, ValueError):
        partial.write_bytes(marshal.dumps(code))
        partial.rename(file)
