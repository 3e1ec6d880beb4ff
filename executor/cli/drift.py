"""`smith drift`: what differs between our mappings, Proxmox and FulcrumCore, and the repairs that harm no VM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor.cli.arguments import AsJson
from executor.cli.clients import Reach, reach
from executor.cli.help_text import examples
from executor.cli.output import complain, say, short, show_json
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
    typer.Option("--believe-list", help="Many VMs are really gone: do not doubt a list for being short."),
]


@dataclass(frozen=True, kw_only=True)
class _Look:
    """One check, and where a repair would be written."""

    outcome: Outcome
    engine: Engine
    cluster: str


def show(context: typer.Context, believe_list: BelieveList = False, as_json: AsJson = False) -> None:
    """Compare mappings, Proxmox and FulcrumCore. Nothing is changed."""
    if context.invoked_subcommand is not None:
        return
    with _looked(believe_list) as look:
        outcome = look.outcome
    if as_json:
        show_json(_document(outcome))
    elif not outcome.inconclusive_reason:
        show_rows(_for_people(outcome.findings), COLUMNS, nothing=f"nothing differs; {outcome.mapped} VMs are mapped")
    _leave(outcome, outcome.problems)


@examples(
    "smith drift fix                            what would be done",
    "smith drift fix --yes                      do it: only our own rows change, never a VM",
    "smith drift fix unmapped_vm --yes            only this kind",
)
def fix(
    kinds: Annotated[list[DriftKind] | None, typer.Argument(metavar="[KIND]...", help="Only these kinds.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it; without, it is only told.")] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept in the audit.")] = "",
    believe_list: BelieveList = False,
    as_json: AsJson = False,
) -> None:
    """Repair what can be repaired without touching a VM: follow moved ones, adopt ours, end mappings of nothing.

    The exit code is 1 while something still differs that a person has to look at.
    """
    with _looked(believe_list) as look:
        chosen = [each for each in look.outcome.findings if each.repair and (not kinds or each.kind in kinds)]
        done = _repaired(look, chosen, reason) if yes else []
    if as_json:
        show_json(_document(look.outcome) | {"repaired": [finding.facts for finding in done]})
    elif not look.outcome.inconclusive_reason:
        _tell(chosen, done, yes=yes)
    keys = {finding.key for finding in done}
    _leave(look.outcome, [finding for finding in look.outcome.problems if finding.key not in keys])


@contextmanager
def _looked(believe_list: bool) -> Iterator[_Look]:
    """Check once, and keep the database open."""
    both: Reach = reach()
    cluster = both.settings.smith_cluster
    with opened(both.settings) as engine:
        inspector = Inspector(engine=engine, fulcrum=both.fulcrum, proxmox=both.proxmox, cluster=cluster)
        outcome = inspector.check(both.agent_id, believe_list=believe_list)
        yield _Look(outcome=outcome, engine=engine, cluster=cluster)


def _repaired(look: _Look, chosen: Sequence[Finding], reason: str) -> list[Finding]:
    who = audit.operator()
    return [each for each in chosen if repair(look.engine, look.cluster, each, who=who, reason=reason)]


def _tell(chosen: Sequence[Finding], done: Sequence[Finding], *, yes: bool) -> None:
    show_rows(
        _for_people(done if yes else chosen),
        COLUMNS,
        nothing="nothing was repaired" if chosen else "nothing can be repaired",
    )
    if chosen and not yes:
        say("nothing was changed: --yes does what is listed")
    for finding in chosen if yes else ():
        if finding not in done:
            complain(f"{finding.kind} of VM {finding.vmid} was left: something happens to its service just now")


def _document(outcome: Outcome) -> dict[str, Any]:
    """Return a check as `--json` shows it. These names are an interface."""
    return {
        "frozen": outcome.inconclusive_reason or None,
        "mapped": outcome.mapped,
        "findings": [finding.facts for finding in outcome.findings],
    }


def _for_people(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [finding.facts | {"service": short(finding.service_id)} for finding in findings]


def _leave(outcome: Outcome, damage: Sequence[Finding]) -> None:
    if outcome.inconclusive_reason:
        complain(f"nothing can be concluded: {outcome.inconclusive_reason}")
        raise typer.Exit(EXIT_PROXMOX)
    if damage:
        raise typer.Exit(EXIT_FAILURE)
