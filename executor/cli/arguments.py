"""Arguments and options that several commands share, and the confirmation question."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from executor.cli.output import sanitized
from executor.errors import EXIT_FAILURE, SmithError

#: 128 + the number of SIGINT, as in a shell.
EXIT_INTERRUPTED = 130

Reference = Annotated[str, typer.Argument(metavar="REF", help="Our job number, FulcrumCore's id, or its beginning.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class UnknownReference(SmithError):
    """The reference fits nothing, or more than one thing."""


class NothingToDo(SmithError):
    """The command does not apply in the present state."""


def confirm(question: str, *, yes: bool) -> None:
    """Ask the operator, unless `yes` is set. Raises typer.BadParameter without a terminal, typer.Exit for a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask on: use --yes")
    try:
        said_yes = typer.confirm(sanitized(question))
    except typer.Abort:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not said_yes:
        raise typer.Exit(EXIT_FAILURE)
