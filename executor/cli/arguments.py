"""Defines the arguments, options and errors that several commands share, and asks the operator for confirmation."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from executor.cli.completion import complete_job, complete_mapping
from executor.errors import EXIT_FAILURE, SmithError
from executor.views.text import sanitized

#: The exit code after Ctrl-C: 128 + the number of SIGINT, as in a shell.
EXIT_INTERRUPTED = 130

#: The argument that names one job.
JobReference = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="The job's number (ID in `smith jobs list`), FulcrumCore's id of the job, or the beginning of this id.",
        autocompletion=complete_job,
    ),
]
#: The argument that names one mapping.
MappingReference = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="VMID, VM name, service id, or the beginning of a service id.",
        autocompletion=complete_mapping,
    ),
]
#: The option --json.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
#: The option --since, which limits a list to the entries after a time.
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Only entries after this time: an age (90s, 30m, 2h, 7d), or a time in UTC (2026-11-27T08:00).",
    ),
]
#: The length in seconds of each time unit.
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def since_time(text: str | None) -> datetime | None:
    """Parse the value of the option --since: a time, or an age (a duration before now). Raises BadParameter."""
    if text is None:
        return None
    now, number, unit = datetime.now(UTC), text.strip()[:-1], text.strip()[-1:]
    try:
        if unit in UNIT_SECONDS:
            moment = now - timedelta(seconds=float(number) * UNIT_SECONDS[unit])
        else:
            moment = datetime.fromisoformat(text.strip())
            moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"--since {text}: neither an age (30m, 2h, 7d) nor a time in UTC (2026-11-27T08:00)"
        ) from None
    if moment > now:
        raise typer.BadParameter(f"--since {text}: this time is in the future; now it is {now:%Y-%m-%dT%H:%M} (UTC)")
    return moment


class UnusableArgument(SmithError):
    """The operator named a job, run, service, mapping or VM that does not exist, is ambiguous, or cannot be used."""


class CommandFailed(SmithError):
    """The job or VM is in a state that does not permit the command, or a playbook that the command started failed."""


def confirm(question: str, *, yes: bool) -> None:
    """Ask the operator the question, unless `yes` (the option --yes) is set.

    `sanitized` masks secrets in the question and escapes its control characters.

    Raises typer.BadParameter if stdin is not a terminal, and typer.Exit if the operator answers no or presses Ctrl-C.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal on which to ask for confirmation: use --yes")
    try:
        is_confirmed = typer.confirm(sanitized(question))
    except typer.Abort:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not is_confirmed:
        raise typer.Exit(EXIT_FAILURE)


def refuse_empty_mapping_reference(reference: str) -> None:
    """Raise UnusableArgument if the operator's reference to a mapping is empty."""
    if not reference.strip():
        raise UnusableArgument(
            "the reference is empty, so it matches no mapping: `smith mappings list` shows the mappings"
        )
