"""What commands are told: references to jobs, a yes, and the options that many of them share."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from executor.cli.output import harmless
from executor.errors import EXIT_FAILURE, SmithError

#: 128 + the number of SIGINT, as shells tell it.
EXIT_INTERRUPTED = 130

Reference = Annotated[str, typer.Argument(metavar="REF", help="Our number, FulcrumCore's id, or its beginning.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class UnknownReference(SmithError):
    """What was asked for is not there, or not told clearly enough."""


class NothingToDo(SmithError):
    """The verb does not apply to the job as it is."""


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal; elsewhere only `--yes` is a yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to ask: say --yes")
    try:
        said_yes = typer.confirm(harmless(question))
    except typer.Abort:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not said_yes:
        raise typer.Exit(EXIT_FAILURE)
