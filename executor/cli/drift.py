"""`smith drift`: compare mappings, Proxmox and FulcrumCore, and repair our own rows; no VM is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor.cli.arguments import AsJson
from executor.cli.clients import connect
from executor.cli.help_text import examples
from executor.cli.output import short, show_error, show_json, show_text
from executor.cli.store import opened
from executor.cli.tables import show_rows
from executor.database import audit
from executor.drift.facts import DriftKind, Finding
from executor.drift.inspector import Inspector, Outcome
from executor.drift.repair import repair
from executor.errors import EXIT_FAILURE, EXIT_PROXMOX

if TYPE_CHECKING:  # only the package database uses SQLAlchemy (import-linter)
    from sqlalchemy import Engine


COLUMNS = {
    "kind": "KIND",
    "vmid": "VMID",
    "name": "NAME",
    "node": "NODE",
    "service": "SERVICE",
    "repair": "REPAIR",
    "text": "FOUND",
}
BelieveList = Annotated[
    bool,
    typer.Option("--believe-list", help="Trust a VM list that is much shorter than expected."),
]


@dataclass(frozen=True, kw_only=True)
class _Check:
    """The outcome of one comparison, and the database for repairs."""

    outcome: Outcome
    engine: Engine
    cluster: str


def show(context: typer.Context, believe_list: BelieveList = False, as_json: AsJson = False) -> None:
    """Compare mappings, Proxmox and FulcrumCore. Nothing is changed."""
    if context.invoked_subcommand is not None:
        return
    with _checked(believe_list) as check:
        outcome = check.outcome
    if as_json:
        show_json(_document(outcome))
    elif not outcome.inconclusive_reason:
        show_rows(
            _table_rows(outcome.findings), COLUMNS, nothing=f"nothing differs; {outcome.mapping_count} VMs are mapped"
        )
    _exit(outcome, outcome.problems)


@examples(
    "smith drift fix                      show the repairs (dry run)",
    "smith drift fix --yes                apply them: only our own rows change, no VM",
    "smith drift fix unmapped_vm --yes    only this kind",
)
def fix(
    kinds: Annotated[list[DriftKind] | None, typer.Argument(metavar="[KIND]...", help="Only these kinds.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Apply the repairs (default: dry run).")] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Stored in the audit.")] = "",
    believe_list: BelieveList = False,
    as_json: AsJson = False,
) -> None:
    """Repair our mappings; no VM is changed.

    Mappings of moved VMs are updated, those of missing VMs are ended, and our unmapped VMs are adopted.
    The exit code is 1 while a difference is left that an operator must resolve.
    """
    with _checked(believe_list) as check:
        chosen = [each for each in check.outcome.findings if each.repair and (not kinds or each.kind in kinds)]
        done = _repair(check, chosen, reason) if yes else []
    if as_json:
        show_json(_document(check.outcome) | {"repaired": [finding.facts for finding in done]})
    elif not check.outcome.inconclusive_reason:
        _show_repairs(chosen, done, yes=yes)
    keys = {finding.key for finding in done}
    _exit(check.outcome, [finding for finding in check.outcome.problems if finding.key not in keys])


@contextmanager
def _checked(believe_list: bool) -> Iterator[_Check]:
    """Compare once, and keep the database open for the block."""
    clients = connect()
    cluster = clients.settings.smith_cluster
    with opened(clients.settings) as engine:
        inspector = Inspector(engine=engine, fulcrum=clients.fulcrum, proxmox=clients.proxmox, cluster=cluster)
        outcome = inspector.check(clients.agent_id, believe_list=believe_list)
        yield _Check(outcome=outcome, engine=engine, cluster=cluster)


def _repair(check: _Check, chosen: Sequence[Finding], reason: str) -> list[Finding]:
    who = audit.operator_name()
    return [each for each in chosen if repair(check.engine, check.cluster, each, who=who, reason=reason)]


def _show_repairs(chosen: Sequence[Finding], done: Sequence[Finding], *, yes: bool) -> None:
    show_rows(
        _table_rows(done if yes else chosen),
        COLUMNS,
        nothing="nothing was repaired" if chosen else "nothing can be repaired",
    )
    if chosen and not yes:
        show_text("nothing was changed: --yes applies these repairs")
    for finding in chosen if yes else ():
        if finding not in done:
            show_error(f"{finding.kind} of VM {finding.vmid} was not repaired: its mapping or jobs changed meanwhile")


def _document(outcome: Outcome) -> dict[str, Any]:
    """Return a check as `--json` shows it. These names are an interface."""
    return {
        "frozen": outcome.inconclusive_reason or None,
        "mapped": outcome.mapping_count,
        "findings": [finding.facts for finding in outcome.findings],
    }


def _table_rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [finding.facts | {"service": short(finding.service_id)} for finding in findings]


def _exit(outcome: Outcome, problems: Sequence[Finding]) -> None:
    if outcome.inconclusive_reason:
        show_error(f"nothing can be concluded: {outcome.inconclusive_reason}")
        raise typer.Exit(EXIT_PROXMOX)
    if problems:
        raise typer.Exit(EXIT_FAILURE)
