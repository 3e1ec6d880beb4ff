"""Finds extension commands: commands that other Python distributions add to `smith`.

Such a distribution declares an entry point `name = "module:function"` in the group `smith.commands`. For a group of
commands, the entry point names a `typer.Typer` instead of a function.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from executor.errors import SmithError

#: The group of entry points (not a group of commands) in which the distributions declare their commands.
ENTRY_POINT_GROUP = "smith.commands"


class DependencyMissing(SmithError):
    """A command of another distribution imports a Python module that is not installed."""


def import_entry_point_command(name: str) -> Callable[..., Any] | None:
    """Import and return the function or the `typer.Typer` of the entry point with this name.

    Returns None if no entry point has this name.
    Raises DependencyMissing if a Python module that the command needs is not installed.
    """
    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return _import_object(entry_point)
    return None


def _import_object(entry_point: EntryPoint) -> Callable[..., Any]:
    """Import and return the function or the `typer.Typer` of the entry point.

    Raises DependencyMissing if a Python module that the command needs is not installed.
    """
    try:
        function_or_group: Callable[..., Any] = entry_point.load()
    except ModuleNotFoundError as error:
        text = f"`smith {entry_point.name}` needs the Python module {error.name}, which is not installed"
        if entry_point.dist:
            text += f": pip install {entry_point.dist.name} (installs the missing dependencies)"
        raise DependencyMissing(text) from error
    return function_or_group
