"""Reads from the source of our action plugins their names, and which modules of community.proxmox they call."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from play_bench import ROOT

PLUGINS = ROOT / "plugins"
#: Where pytest-ansible links the checkout to if it runs without `--ansible-unit-inject-only`.
LINKED_CHECKOUT = ROOT / "collections"


def actions() -> set[str]:
    """Return the names of the action plugins."""
    return {file.stem for file in (PLUGINS / "action").glob("*.py")}


def modules_that_actions_call() -> set[str]:
    """Return the names in the first argument of every call of the method `change_with_module`."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in PLUGINS.rglob("*.py")]
    return {name for tree in trees for call in _calls_of_change_with_module(tree) for name in _texts(call.args[0])}


def _calls_of_change_with_module(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "change_with_module"
        ):
            yield node


def _texts(argument: ast.expr) -> Iterator[str]:
    """Yield the module names in an argument: one text, or the two texts of a conditional expression."""
    if isinstance(argument, ast.IfExp):
        yield from _texts(argument.body)
        yield from _texts(argument.orelse)
        return
    if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
        raise TypeError(
            f"line {argument.lineno}: the module of a call of `change_with_module` is no text: {ast.unparse(argument)}"
        )
    yield argument.value
