"""`smith doctor`: runs the preflight checks, and shows each problem with its remedy."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated

import typer

from executor.cli.arguments import AsJson
from executor.cli.help_text import examples
from executor.cli.output import show_json, show_text
from executor.cli.service_context import run_as_service
from executor.cli.streamed_table import StreamedTable
from executor.cli.tables import show_heading
from executor.doctor.checks import CheckResult, exit_code
from executor.doctor.run import run_checks

COLUMNS = {"area": "AREA", "name": "CHECK", "status": "STATUS", "text": "FOUND"}
#: The fixed widths of the columns, in characters. Each result is printed before the lengths of later results are
#: known.
WIDTHS = {"area": 8, "name": 18, "status": 7, "text": 60}


@examples(
    "smith doctor",
    "smith doctor --as-service    # as root: with the settings and the user of agent-smith.service",
    "smith doctor --json",
)
def run_doctor(
    as_service: Annotated[
        bool,
        typer.Option(
            "--as-service", help="Run with the settings and the user of the running agent-smith.service (systemd)."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check settings, FulcrumCore, Proxmox, database and this machine.

    Each result is printed as soon as it is known. The remedies of the problems are printed at the end.
    The exit code is 0 if no check failed. Otherwise, it is the code of the first area with a failed check:
    3 settings, 4 FulcrumCore, 5 Proxmox, 6 database, 1 this machine.
    """
    if as_service:
        raise typer.Exit(run_as_service(["doctor", "--json"] if as_json else ["doctor"]))
    if as_json:
        results = list(run_checks())
        show_json({"checks": [asdict(result) for result in results], "exit_code": exit_code(results)})
    else:
        results = show_check_results(run_checks())
    raise typer.Exit(exit_code(results))


def show_check_results(results: Iterable[CheckResult]) -> list[CheckResult]:
    """Print each result as soon as it is known, and then the remedies. Return the results."""
    shown_results: list[CheckResult] = []
    table = StreamedTable(COLUMNS, WIDTHS)
    for result in results:
        shown_results.append(result)
        table.show(asdict(result))
    _show_remedies(shown_results)
    return shown_results


def _show_remedies(results: list[CheckResult]) -> None:
    """Print the remedies (the `hints` of the results), each below the names of the checks that returned the remedy.

    A remedy of several results is printed once. Each remedy is printed in a separate line, so that an operator can copy
    a command.
    """
    names_by_remedy: dict[str, list[str]] = {}
    for result in results:
        for remedy in result.hints:
            names_by_remedy.setdefault(remedy, []).append(result.name)
    if names_by_remedy:
        show_heading("What to do")
        for names, remedies in itertools.groupby(names_by_remedy, lambda remedy: sorted(set(names_by_remedy[remedy]))):
            show_text(f"# {', '.join(names)}")
            for remedy in remedies:
                show_text(remedy)
