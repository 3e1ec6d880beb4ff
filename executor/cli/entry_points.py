"""Commands of other distributions: the entry points of one group, `name = "module:function"`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

GROUP = "smith.commands"


def find_function(name: str) -> Callable[..., Any] | None:
    """Import and return the function that an entry point of this name declares, None when there is none."""
    for entry_point in entry_points(group=GROUP, name=name):
        function: Callable[..., Any] = entry_point.load()
        return function
    return None
