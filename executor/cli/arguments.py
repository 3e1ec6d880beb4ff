"""What commands are told: references to jobs, a yes, and the options that many of them share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from executor.cli.output import harmless
from executor.errors import EXIT_FAILURE, SmithError

if TYPE_CHECKING:  # imported when a command runs
    from sqlalchemy.orm import Session

    from executor.database.tables import Job

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


def find_job(session: Session, reference: str) -> Job:
    """Return the job. Raises UnknownReference, saying whether nothing or too much fits."""
    from executor.database import queries  # noqa: PLC0415 (see above)

    if not (reference := reference.strip()):
        raise UnknownReference("an empty reference names no job: `smith jobs list` shows them")
    if (job := queries.find_job(session, reference)) is not None:
        return job
    candidates = queries.fulcrum_ids_beginning(session, reference)
    if len(candidates) > 1:
        raise UnknownReference(f"more than one job begins with {reference}: {', '.join(candidates)}")
    raise UnknownReference(
        f"there is no job {reference}: say our number, FulcrumCore's id or its beginning (`smith jobs list` shows them)"
    )


def find_service_id(session: Session, beginning: str) -> str:
    """Return the id of the one service with jobs that begins so. Raises UnknownReference."""
    from executor.database import queries  # noqa: PLC0415 (see above)

    found = queries.service_ids_beginning(session, beginning)
    if len(found) > 1:
        raise UnknownReference(f"more than one service begins with {beginning}: {', '.join(found)}")
    if not found:
        raise UnknownReference(f"no job is for a service whose id begins with {beginning}")
    return found[0]
