"""`smith doctor`: runs the preflight checks, and shows each problem with its remedy."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import typer

from executor.cli.arguments import AsJson
from executor.cli.help_text import examples
from executor.cli.output import show_json, show_text
from executor.cli.tables import show_heading, show_rows
from executor.doctor.checks import CheckResult, exit_code
from executor.doctor.run import run_checks

COLUMNS = {"area": "AREA", "name": "CHECK", "status": "STATUS", "text": "FOUND"}


@examples(
    "smith doctor",
    "smith doctor --json",
)
def show(as_json: AsJson = False) -> None:
    """Check settings, FulcrumCore, Proxmox, database and tools.

    Each problem is shown with its remedy.
    The exit code names the first area that failed: 3 settings, 4 FulcrumCore, 5 Proxmox, 6 database, 1 this machine.
    """
    checks = list(run_checks())
    if as_json:
        show_json({"checks": [asdict(check) for check in checks], "exit_code": exit_code(checks)})
    else:
        show_checks(checks)
    raise typer.Exit(exit_code(checks))


def show_checks(checks: list[CheckResult]) -> None:
    """Print a table of the checks, and their remedies."""
    show_rows([asdict(check) for check in checks], COLUMNS, if_empty="")
    _show_hints(checks)


def _show_hints(checks: list[CheckResult]) -> None:
    """Print the remedies, which the checks have as `hints`, below the names of their checks.

    A common remedy is printed once. Each is a line of its own, so that an operator can copy a command.
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
