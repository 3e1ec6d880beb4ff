"""`smith drift`: compares our mappings with Proxmox and FulcrumCore, and repairs the mappings. No VM is changed.

A finding is one difference. It is either harmless or a problem. The agent itself repairs harmless findings after its
next periodic comparison. An operator must look at problems; a change of a mapping repairs some of them.
`smith drift fix` repairs all findings that can be repaired, harmless ones and problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor.cli.arguments import AsJson
from executor.cli.clients import create_fulcrum_and_proxmox_clients
from executor.cli.help_text import examples
from executor.cli.output import show_error, show_json, show_text
from executor.cli.store import open_database
from executor.cli.tables import show_rows
from executor.database import audit
from executor.drift.facts import DriftKind, Finding
from executor.drift.inspector import DriftCheckOutcome, DriftInspector
from executor.drift.repair import apply_repair
from executor.errors import EXIT_FAILURE, EXIT_PROXMOX
from executor.views.text import short_id

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
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
#: Without the option --believe-list, the comparison is inconclusive if many mapped VMs are missing in Proxmox's list.
BelieveList = Annotated[
    bool,
    typer.Option("--believe-list", help="Trust Proxmox's list of VMs even if many mapped VMs are not in it."),
]


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """The outcome of a comparison, and the open database and the cluster's name, which the repairs need."""

    outcome: DriftCheckOutcome
    engine: Engine
    cluster: str


def show_drift(context: typer.Context, may_many_vms_be_missing: BelieveList = False, as_json: AsJson = False) -> None:
    """Compare mappings, Proxmox and FulcrumCore. Nothing is changed."""
    if context.invoked_subcommand is not None:
        return  # typer also calls this function before `fix`.
    with _compare_mappings(may_many_vms_be_missing) as comparison:
        outcome = comparison.outcome
    if as_json:
        show_json(_json_fields(outcome))
    elif not outcome.inconclusive_reason:
        text_if_no_findings = f"nothing differs; {outcome.mapping_count} VMs are mapped"
        show_rows(_table_rows(outcome.findings), COLUMNS, if_empty=text_if_no_findings)
        if outcome.other_owner_guest_count:
            show_text(
                f"not compared: {outcome.other_owner_guest_count} VMs and containers of other agents, other clusters "
                "or another FulcrumCore"
            )
    _end_with_exit_code(outcome, outcome.problems)


@examples(
    "smith drift fix                      show the repairs (dry run)",
    "smith drift fix --yes                apply them: only rows of our database change",
    "smith drift fix unmapped_vm --yes    repair only differences of this kind",
)
def repair_drift(
    kinds: Annotated[
        list[DriftKind] | None, typer.Argument(metavar="KIND", help="Repair only differences of these kinds.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Apply the repairs (default: dry run).")] = False,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Stored in the audit log (`smith audit list`).")
    ] = "",
    may_many_vms_be_missing: BelieveList = False,
    as_json: AsJson = False,
) -> None:
    """Repair wrong and missing mappings; no VM is changed.

    If a VM is on another node than its mapping says, the mapping is updated. The mapping of a VM that does not exist is
    marked as lost, or as deleted if the service does not exist either. A VM that has a service's marker but no mapping
    gets a mapping.
    The exit code is 1 if a difference remains that an operator must resolve.
    """
    with _compare_mappings(may_many_vms_be_missing) as comparison:
        selected_findings = [
            finding
            for finding in comparison.outcome.findings
            # finding.repair names the repair, and is None if this command cannot repair the finding.
            if finding.repair and (not kinds or finding.kind in kinds)
        ]
        repaired_findings = _repair_findings(comparison, selected_findings, reason) if yes else []
    if as_json:
        # `shown_values` is a finding as a dictionary for `--json`.
        show_json(
            _json_fields(comparison.outcome) | {"repaired": [finding.shown_values for finding in repaired_findings]}
        )
    elif not comparison.outcome.inconclusive_reason:
        _show_repairs(selected_findings, repaired_findings, yes=yes)
    # `key` identifies a finding: its kind, service id and VMID.
    repaired_keys = {finding.key for finding in repaired_findings}
    remaining_findings = [finding for finding in comparison.outcome.problems if finding.key not in repaired_keys]
    _end_with_exit_code(comparison.outcome, remaining_findings)


@contextmanager
def _compare_mappings(may_many_vms_be_missing: bool) -> Iterator[_Comparison]:
    """Compare the mappings with Proxmox and FulcrumCore. The database stays open during the `with` block."""
    clients = create_fulcrum_and_proxmox_clients()
    cluster = clients.settings.smith_cluster
    with open_database(clients.settings) as engine:
        inspector = DriftInspector(engine=engine, fulcrum=clients.fulcrum, proxmox=clients.proxmox, cluster=cluster)
        outcome = inspector.check_drift(clients.agent_id, may_many_vms_be_missing=may_many_vms_be_missing)
        yield _Comparison(outcome=outcome, engine=engine, cluster=cluster)


def _repair_findings(comparison: _Comparison, selected_findings: Sequence[Finding], reason: str) -> list[Finding]:
    """Repair the selected findings, and return the findings that were repaired.

    A finding is not repaired if its mapping has changed since the comparison, or if its service is busy: the service
    has an open job, a job whose report to FulcrumCore is due, or a run that an operator started.
    """
    who = audit.operator_name()
    repaired_findings = []
    for finding in selected_findings:
        if apply_repair(comparison.engine, comparison.cluster, finding, who=who, reason=reason):
            repaired_findings.append(finding)
    return repaired_findings


def _show_repairs(selected_findings: Sequence[Finding], repaired_findings: Sequence[Finding], *, yes: bool) -> None:
    """Print the repaired findings, or in a dry run (without --yes) the findings that would be repaired."""
    text_if_no_rows = "nothing was repaired" if selected_findings else "nothing can be repaired"
    show_rows(_table_rows(repaired_findings if yes else selected_findings), COLUMNS, if_empty=text_if_no_rows)
    if not yes:
        if selected_findings:
            show_text("nothing was changed: --yes applies these repairs")
        return
    for finding in selected_findings:
        if finding not in repaired_findings:
            show_error(
                f"the finding {finding.kind} of VM {finding.vmid} was not repaired: the mapping has changed since the "
                "comparison, or the service has an open job, a report that is due, or a run that an operator started; "
                "call `smith drift fix` again later"
            )


def _json_fields(outcome: DriftCheckOutcome) -> dict[str, Any]:
    """Return the outcome as a dictionary with the keys of `--json`."""
    return {
        # The reason why the comparison is inconclusive, or None. After an inconclusive comparison, nothing is repaired.
        "frozen": outcome.inconclusive_reason or None,
        "mapped": outcome.mapping_count,
        "foreign": outcome.other_owner_guest_count,  # VMs and containers of other agents, clusters or FulcrumCores
        "findings": [finding.shown_values for finding in outcome.findings],
    }


def _table_rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [finding.shown_values | {"service": short_id(finding.service_id)} for finding in findings]


def _end_with_exit_code(outcome: DriftCheckOutcome, problems: Sequence[Finding]) -> None:
    """End the command with exit code 5 if the comparison is inconclusive, or 1 if there are problems."""
    if outcome.inconclusive_reason:
        show_error(f"the comparison is inconclusive: {outcome.inconclusive_reason}")
        raise typer.Exit(EXIT_PROXMOX)
    if problems:
        raise typer.Exit(EXIT_FAILURE)
