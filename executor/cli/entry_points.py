"""Finds the commands that other Python distributions add to `smith`.

Such a distribution declares, in the entry point group `smith.commands`, an entry point `name = "module:function"`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from executor.errors import SmithError

GROUP = "smith.commands"


class DependencyMissing(SmithError):
    """A Python module that another distribution's command imports is not installed."""


def find_function(name: str) -> Callable[..., Any] | None:
    """Import and return the function of the entry point with this name; return None when there is no such entry point.

    Raises DependencyMissing.
    """
    for entry_point in entry_points(group=GROUP, name=name):
        return _import_function(entry_point)
    return None


def _import_function(entry_point: EntryPoint) -> Callable[..., Any]:
    """Import and return the function. Raises DependencyMissing if a module that it needs is not installed."""
    try:
        function: Callable[..., Any] = entry_point.load()
    except ModuleNotFoundError as error:
        remedy = f": pip install {entry_point.dist.name}" if entry_point.dist else ""
        raise DependencyMissing(
            f"`smith {entry_point.name}` needs the Python module {error.name}, which is not installed{remedy}"
        ) from error
    return function
