"""Adds the section `Examples:` to a command's help. Standard library only, because `executor.cli.health` imports it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

#: The attribute of a command's function that holds its section.
ATTRIBUTE = "smith_examples"


def examples(*lines: str) -> Callable[[Function], Function]:
    """Return a decorator that stores these example lines at a command's function, for the end of the command's help."""

    def add(function: Function) -> Function:
        setattr(function, ATTRIBUTE, examples_section(*lines))
        return function

    return add


def examples_of(function: Callable[..., Any]) -> str | None:
    """Return the section that the decorator `examples` stored at the function, None without one."""
    section = getattr(function, ATTRIBUTE, None)
    return section if isinstance(section, str) else None


def examples_section(*lines: str) -> str:
    """Return the lines under the title `Examples:`. The `\\b` makes typer keep the line breaks."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
