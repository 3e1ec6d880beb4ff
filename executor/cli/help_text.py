"""Adds the section `Examples:` to a command's help.

This module uses only the standard library, because `executor.cli.health` imports it and must start fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

#: The attribute of a command's function in which the text of its section `Examples:` is stored.
ATTRIBUTE = "smith_examples"


def examples(*lines: str) -> Callable[[Function], Function]:
    """Return a decorator that stores the lines, as a section `Examples:`, in an attribute of a command's function."""

    def add(function: Function) -> Function:
        setattr(function, ATTRIBUTE, examples_section(*lines))
        return function

    return add


def examples_of(function: Callable[..., Any]) -> str | None:
    """Return the section that the decorator `examples` has stored in the function, or None if it has no section."""
    section = getattr(function, ATTRIBUTE, None)
    return section if isinstance(section, str) else None


def examples_section(*lines: str) -> str:
    """Return the lines under the title `Examples:`. The first line, `\\b`, makes typer keep the line breaks."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
