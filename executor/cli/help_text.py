"""Adds the section `Examples:` to a command's help.

This module uses only the standard library, because `executor.cli.health` imports it and must start fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

CommandFunction = TypeVar("CommandFunction", bound=Callable[..., Any])

#: The attribute of a command's function that contains the text of the section `Examples:`.
EXAMPLES_ATTRIBUTE = "smith_examples"


def examples(*lines: str) -> Callable[[CommandFunction], CommandFunction]:
    """Return a decorator that adds the section `Examples:`, with these lines, to a command's help.

    The decorator stores the section in an attribute of the command's function.
    """

    def store_examples(function: CommandFunction) -> CommandFunction:
        setattr(function, EXAMPLES_ATTRIBUTE, examples_section(*lines))
        return function

    return store_examples


def examples_section_of(function: Callable[..., Any]) -> str | None:
    """Return the section that the decorator `examples` has stored in the function, or None if there is none."""
    section = getattr(function, EXAMPLES_ATTRIBUTE, None)
    return section if isinstance(section, str) else None


def examples_section(*lines: str) -> str:
    """Return the lines under the title `Examples:`. The first line, `\\b`, makes typer keep the line breaks."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
