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
#: The widths of the columns, in characters. They are fixed, because each result is printed before the later results,
#: which may be longer, are known.
WIDTHS = {"area": 8, "name": 18, "status": 7, "text": 60}


@examples(
    "smith doctor",
    "smith doctor --as-service    # as root: with the settings and the user of agent-smith.service",
    "smith doctor --json",
)
def show(
    as_service: Annotated[
        bool,
        typer.Option(
            "--as-service", help="Run with the settings and the user of the running agent-smith.service (systemd)."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check settings, FulcrumCore, Proxmox, database and tools.

    Each result is printed as soon as it is known. The remedies of the problems are printed at the end.
    The exit code names the first area that failed: 3 settings, 4 FulcrumCore, 5 Proxmox, 6 database, 1 this machine.
    """
    if as_service:
        raise typer.Exit(run_as_service(["doctor", "--json"] if as_json else ["doctor"]))
    if as_json:
        checks = list(run_checks())
        show_json({"checks": [asdict(check) for check in checks], "exit_code": exit_code(checks)})
    else:
        checks = show_checks(run_checks())
    raise typer.Exit(exit_code(checks))


def show_checks(results: Iterable[CheckResult]) -> list[CheckResult]:
    """Print each result as soon as it is known, and then the remedies. Return the results."""
    checks: list[CheckResult] = []
    table = StreamedTable(COLUMNS, WIDTHS)
    for check in results:
        checks.append(check)
        table.show(asdict(check))
    _show_hints(checks)
    return checks


def _show_hints(checks: list[CheckResult]) -> None:
    """Print the remedies (the `hints` of the checks), each below the names of the checks that have this remedy.

    A remedy that several checks have is printed once. Each remedy has a line of its own, so that an operator can copy a
    command.
    """
    names_by_hint: dict[str, list[str]] = {}
    for check in checks:
        for hint in check.hints:
            names_by_hint.setdefault(hint, []).append(check.name)
    if names_by_hint:
        show_heading("What to do")
        for names, hints in itertools.groupby(names_by_hint, lambda hint: sorted(set(names_by_hint[hint]))):
            show_text(f"# {', '.join(names)}")
            for hint in hints:
                show_text(hint)
