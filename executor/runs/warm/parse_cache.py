"""Parsed YAML and compiled templates, shared between warm runs.

Both depend on their text only. The key of a document has the file's name and content, so a changed file is parsed
again; the key of a template has its text and syntax. No input or result of a run is kept.
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

#: Attributes of Jinja's environment that change how a template's text is read.
SYNTAX = tuple(name.attribute for name in patches.SYNTAX)
OUR_COLLECTION = ("ansible_collections", "community", "proxmox")
#: File in the store with the byte code of all runs.
CODE_FILE = "templates"
#: A bound against templates whose text differs in each run; ours are a few hundred.
MAX_TEMPLATES = 4000

Key = tuple[Any, ...]


class ParsedDocuments:
    """YAML that was parsed before the fork: our files, documentation of plugins, routing tables of collections."""

    def __init__(self) -> None:
        self._tags_of = patches.TAGS.get()
        self._parse = patches.YAML_LOAD.get()
        self._known: dict[Key, Any] = {}

    def load(self, files: Iterable[Path]) -> None:
        """Parse the documents of a run, with the same calls as a run."""
        loader = patches.DATA_LOADER.get()
        patches.YAML_LOAD.replace(self._parse_and_keep)
        for file in files:
            with contextlib.suppress(Exception):  # a run reports the error
                loader().load_from_file(str(file), cache="none", unsafe=True, trusted_as_template=True)
        for parse in (self._load_documentation, self._load_routing):
            with contextlib.suppress(Exception):
                parse()
        patches.YAML_LOAD.replace(self._parse)

    def install(self) -> None:
        """Return the parsed documents in this process. Each is returned once, because its caller may change it."""
        patches.YAML_LOAD.replace(self._take_parsed)
        load = patches.LOAD_FROM_FILE.get()

        def load_own(loader: Any, file_name: str, cache: str = "all", unsafe: bool = False, **options: Any) -> Any:
            """Return the parsed document itself, not a copy, to a caller that wants a copy of its own."""
            if unsafe or cache != "all" or loader.path_dwim(file_name) in loader._FILE_CACHE:
                return load(loader, file_name, cache=cache, unsafe=unsafe, **options)
            return load(loader, file_name, cache="none", unsafe=True, **options)

        patches.LOAD_FROM_FILE.replace(load_own)

    def _load_documentation(self) -> None:
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
        import ansible  # noqa: PLC0415  loaded for the server

        found = [Path(ansible.__path__[0], "config", "ansible_builtin_runtime.yml")]
        found += [Path(root, *OUR_COLLECTION, "meta", "runtime.yml") for root in sys.path]
        for file in found:
            if file.is_file():
                patches.ROUTING_TO_DICT.get()(file.read_bytes(), None)

    def _key(self, text: Any, loader: type) -> Key:
        return (loader, text if isinstance(text, bytes) else str(text), self._tags_of(text))

    def _parse_and_keep(self, stream: Any, Loader: type) -> Any:
        parsed = self._parse(stream, Loader=Loader)
        self._known[self._key(stream, Loader)] = copy.deepcopy(parsed)
        return parsed

    def _take_parsed(self, stream: Any, Loader: type) -> Any:
        if isinstance(stream, (str, bytes)) and (key := self._key(stream, Loader)) in self._known:
            return self._known.pop(key)
        return self._parse(stream, Loader=Loader)


def _callbacks(package: str) -> list[str]:
    """Return the files of all callbacks, whose documentation Ansible reads. They are not imported."""
    top, *inner = package.split(".")
    spec = importlib.util.find_spec(top)
    places = (spec.submodule_search_locations or []) if spec else []
    return [str(path) for place in places for path in Path(place, *inner).glob("*.py")]


def _documentation_in(path: str) -> str:
    for node in ast.parse(Path(path).read_bytes()).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "DOCUMENTATION"
        ):
            return str(ast.literal_eval(node.value))
    return ""


class CompiledTemplates:
    """Byte code of templates by their text, from earlier runs and for later ones."""

    def __init__(self, store: Path) -> None:
        self._file = store / CODE_FILE
        self._known = _read(self._file)
        self._used: dict[Key, CodeType] = {}
        self._new: dict[Key, bytes] = {}
        self._expression: Key | None = None

    def install(self) -> None:
        """Use it for all templates of this process and its forks. What a fork compiles is not saved."""
        if patches.ENVIRONMENT.get()(ansible_basedir=None)._debuggable_template_source:
            return
        current_context, expression_class = patches.CURRENT_CONTEXT.get(), patches.TEMPLATE_EXPRESSION.get()
        compile_, compile_expression = patches.COMPILE.get(), patches.COMPILE_EXPRESSION.get()

        def key_of(env: Any, kind: str, source: str) -> Key:
            current = current_context(optional=True)
            escapes = current.escape_backslashes if current else None
            return (kind, type(env).__qualname__, str(source), escapes, *(getattr(env, name) for name in SYNTAX))

        def compile_by_text(env: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
            key = self._expression
            if isinstance(source, str) and not args and not kwargs:
                key = key_of(env, "template", source)
            self._expression = None
            if key is None:
                return compile_(env, source, *args, **kwargs)
            if key not in self._used and key not in self._known:
                self._used[key] = compile_(env, source)
                self._new[key] = marshal.dumps(self._used[key])
            return self._code(key)

        def compile_expression_by_text(env: Any, source: str, undefined_to_none: bool = True) -> Any:
            key = key_of(env, "expression", source)
            if key in self._used or key in self._known:
                template = env.template_class.from_code(env, self._code(key), env.make_globals(None), None)
                return expression_class(template, undefined_to_none)
            self._expression = key
            try:
                return compile_expression(env, source, undefined_to_none)
            finally:
                self._expression = None

        patches.COMPILE.replace(compile_by_text)
        patches.COMPILE_EXPRESSION.replace(compile_expression_by_text)

    def save(self) -> None:
        """Add the templates that this run has compiled to the store."""
        if not self._new:
            return
        known = _read(self._file)  # other runs may have saved theirs since
        if self._new.keys() - known.keys() and len(known | self._new) <= MAX_TEMPLATES:
            _write(self._file, known | self._new)

    def _code(self, key: Key) -> CodeType:
        """Return the code of a known template. Loaded on demand: a run uses a few dozen of hundreds."""
        if key not in self._used:
            self._used[key] = marshal.loads(self._known[key])  # noqa: S302  our own file in a private folder
        return self._used[key]


def list_folders_once() -> None:
    """Make Ansible list each folder of plugins once in a run, not for each plugin that it looks up."""
    import glob  # noqa: PLC0415  for this function alone

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
        found: dict[Key, bytes] = marshal.loads(file.read_bytes())  # noqa: S302  our own file in a private folder
    except (OSError, ValueError, EOFError, TypeError):
        return {}
    return found


def _write(file: Path, code: dict[Key, bytes]) -> None:
    """Replace the file atomically. If the disk is full, the next run compiles again."""
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    with contextlib.suppress(OSError, ValueError):
        partial.write_bytes(marshal.dumps(code))
        partial.rename(file)
