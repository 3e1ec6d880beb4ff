"""Defines the arguments, options and errors that several commands share, and asks the operator for confirmation."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from executor.cli.output import sanitized
from executor.errors import EXIT_FAILURE, SmithError

#: The exit code after Ctrl-C: 128 + the number of SIGINT, as in a shell.
EXIT_INTERRUPTED = 130

#: The argument that names one job.
JobReference = Annotated[
    str, typer.Argument(metavar="REF", help="Our job number, FulcrumCore's id of the job, or the beginning of this id.")
]
#: The option --json.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class UnusableReference(SmithError):
    """The operator's reference (an id, a number or a name) matches no usable object, or more than one object."""


class CommandFailed(SmithError):
    """The command is not possible in the present state of the job or VM, or a playbook that it started has failed."""


def confirm(question: str, *, yes: bool) -> None:
    """Ask the operator the question, unless `yes` (the option --yes) is set.

    Raises typer.BadParameter if stdin is not a terminal, and typer.Exit if the operator answers no or interrupts.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask on: use --yes")
    try:
        is_confirmed = typer.confirm(sanitized(question))
    except typer.Abort:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not is_confirmed:
        raise typer.Exit(EXIT_FAILURE)
