"""What one run has worked out, and the next one need not: the YAML of our own files, and Jinja's byte code.

Both follow from the text alone. A document is known by its file's name and content, so a changed file is read anew; a
template by its text and the syntax that it is written in. Nothing that a run was given, or has found, is kept here.
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
#: In the store: the byte code of all runs.
CODE_FILE = "templates"
#: Templates with a text of the moment would fill it up: those of ours are a few hundred.
MOST_TEMPLATES = 4000

Key = tuple[Any, ...]


class Documents:
    """YAML that was parsed before the fork: our own files, plug-ins' documentation, collections' routing tables."""

    def __init__(self) -> None:
        self._tags_of = patches.TAGS.get()
        self._parse = patches.YAML_LOAD.get()
        self._known: dict[Key, Any] = {}

    def learn(self, files: Iterable[Path]) -> None:
        """Parse what runs will ask for, in the words in which they do."""
        loader = patches.DATA_LOADER.get()
        patches.YAML_LOAD.replace(self._remember)
        for file in files:
            with contextlib.suppress(Exception):  # a run will say what is wrong with it
                loader().load_from_file(str(file), cache="none", unsafe=True, trusted_as_template=True)
        for parse in (self._learn_documentation, self._learn_routing):
            with contextlib.suppress(Exception):
                parse()
        patches.YAML_LOAD.replace(self._parse)

    def install(self) -> None:
        """Hand them out in this process, each once: what is done to a document stays with who has it."""
        patches.YAML_LOAD.replace(self._recall)
        load = patches.LOAD_FROM_FILE.get()

        def load_own(loader: Any, file_name: str, cache: str = "all", unsafe: bool = False, **options: Any) -> Any:
            """Return the parsed document itself, not a copy, to a caller that wants a copy of its own."""
            if unsafe or cache != "all" or loader.path_dwim(file_name) in loader._FILE_CACHE:
                return load(loader, file_name, cache=cache, unsafe=unsafe, **options)
            return load(loader, file_name, cache="none", unsafe=True, **options)

        patches.LOAD_FROM_FILE.replace(load_own)

    def _learn_documentation(self) -> None:
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
            if parsed := self._remember(text, Loader=loader):
                add_fragments(parsed, path, fragment_loader=fragment_loader)

    def _learn_routing(self) -> None:
        import ansible  # noqa: PLC0415  loaded for the server

        found = [Path(ansible.__path__[0], "config", "ansible_builtin_runtime.yml")]
        found += [Path(root, *OUR_COLLECTION, "meta", "runtime.yml") for root in sys.path]
        for file in found:
            if file.is_file():
                patches.ROUTING_TO_DICT.get()(file.read_bytes(), None)

    def _key(self, text: Any, loader: type) -> Key:
        return (loader, text if isinstance(text, bytes) else str(text), self._tags_of(text))

    def _remember(self, stream: Any, Loader: type) -> Any:
        parsed = self._parse(stream, Loader=Loader)
        self._known[self._key(stream, Loader)] = copy.deepcopy(parsed)
        return parsed

    def _recall(self, stream: Any, Loader: type) -> Any:
        if isinstance(stream, (str, bytes)) and (key := self._key(stream, Loader)) in self._known:
            return self._known.pop(key)
        return self._parse(stream, Loader=Loader)


def _callbacks(package: str) -> list[str]:
    """Ansible looks at all of them, at their names and words only: neither they nor their packages are loaded here."""
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


class Templates:
    """Byte code by a template's text, from earlier runs and for later ones."""

    def __init__(self, store: Path) -> None:
        self._file = store / CODE_FILE
        self._known = _read(self._file)
        self._used: dict[Key, CodeType] = {}
        self._fresh: dict[Key, bytes] = {}
        self._expression: Key | None = None

    def install(self) -> None:
        """Compile through it in this process and its forks. What a fork compiles is lost with it."""
        if patches.ENVIRONMENT.get()(ansible_basedir=None)._debuggable_template_source:
            return
        current_context, expression_class = patches.CURRENT_CONTEXT.get(), patches.TEMPLATE_EXPRESSION.get()
        compile_, compile_expression = patches.COMPILE.get(), patches.COMPILE_EXPRESSION.get()

        def key_of(env: Any, kind: str, source: str) -> Key:
            current = current_context(optional=True)
            escapes = current.escape_backslashes if current else None
            return (kind, type(env).__qualname__, str(source), escapes, *(getattr(env, name) for name in SYNTAX))

        def by_text(env: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
            key = self._expression
            if isinstance(source, str) and not args and not kwargs:
                key = key_of(env, "template", source)
            self._expression = None
            if key is None:
                return compile_(env, source, *args, **kwargs)
            if key not in self._used and key not in self._known:
                self._used[key] = compile_(env, source)
                self._fresh[key] = marshal.dumps(self._used[key])
            return self._code(key)

        def expression_by_text(env: Any, source: str, undefined_to_none: bool = True) -> Any:
            key = key_of(env, "expression", source)
            if key in self._used or key in self._known:
                template = env.template_class.from_code(env, self._code(key), env.make_globals(None), None)
                return expression_class(template, undefined_to_none)
            self._expression = key
            try:
                return compile_expression(env, source, undefined_to_none)
            finally:
                self._expression = None

        patches.COMPILE.replace(by_text)
        patches.COMPILE_EXPRESSION.replace(expression_by_text)

    def leave(self) -> None:
        """Add what this run has compiled to what there is."""
        if not self._fresh:
            return
        known = _read(self._file)  # by now others may have left theirs
        if self._fresh.keys() - known.keys() and len(known | self._fresh) <= MOST_TEMPLATES:
            _write(self._file, known | self._fresh)

    def _code(self, key: Key) -> CodeType:
        """Of hundreds that are known a run uses a few dozen; only those become code."""
        if key not in self._used:
            self._used[key] = marshal.loads(self._known[key])  # noqa: S302  ours, in a folder that is only ours
        return self._used[key]


def list_folders_once() -> None:
    """Read each folder of plugins once in a run. Ansible reads it for each name that it looks up there."""
    import glob  # noqa: PLC0415  for this purpose alone

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
        found: dict[Key, bytes] = marshal.loads(file.read_bytes())  # noqa: S302  ours, in a folder that is only ours
    except (OSError, ValueError, EOFError, TypeError):
        return {}
    return found


def _write(file: Path, code: dict[Key, bytes]) -> None:
    """All at once: a reader sees the old file or the new one. A full disk costs the next run its start."""
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    with contextlib.suppress(OSError, ValueError):
        partial.write_bytes(marshal.dumps(code))
        partial.rename(file)
