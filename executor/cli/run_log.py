"""`smith runs log`: shows what the playbook of a run printed. An agent or an operator has started the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from executor.cli.arguments import AsJson, UnusableArgument
from executor.cli.help_text import examples
from executor.cli.job_log import read_output
from executor.cli.output import show_json, show_text
from executor.cli.store import ReadOnlyTransaction, read_only_transaction
from executor.database import run_queries

if TYPE_CHECKING:  # The classes are used only in annotations.
    from executor.database.core_tables import Reader
    from executor.database.tables.jobs import ManualRun

#: Printed if no output of a run is stored.
NO_OUTPUT_TEXT = "no output of this run is stored"


@examples("smith runs log start-0c5d0f3a9b21")
def show_log(
    ident: Annotated[str, typer.Argument(metavar="IDENT", help="The run's ident (smith runs list).")],
    as_json: AsJson = False,
) -> None:
    """Show what a run's playbook printed.

    For a run that an operator started, only the beginning and the end of the output are stored. While such a run is
    in progress, the newest lines are missing for a few seconds.
    """
    with read_only_transaction() as transaction:
        text = _read_output(transaction, ident)
    if as_json:
        show_json({"run": ident, "stdout": text})
    else:
        show_text(text.rstrip("\n") or NO_OUTPUT_TEXT)


def _read_output(transaction: ReadOnlyTransaction, ident: str) -> str:
    """Return the output of a run, which an agent or an operator started. Raises UnusableArgument if it is not found."""
    # `transaction` contains the connection to the database and the settings. `find_run` finds only runs of jobs.
    run = run_queries.find_run(transaction.connection, ident)
    if run is not None:
        return read_output(run, transaction.settings)
    return find_manual_run(transaction.connection, ident).output or ""


def find_manual_run(reader: Reader, ident: str) -> ManualRun:
    """Return the run that an operator started. `reader` is a connection or session of SQLAlchemy.

    Raises UnusableArgument if there is no run with this ident.
    """
    run = run_queries.find_manual_run(reader, ident)
    if run is None:
        raise UnusableArgument(f"there is no run {ident}: `smith runs list` shows the runs")
    return run
