"""`smith mappings adopt --from FILE`: adopts many VMs, for example the VMs of the PHP agent.

The PHP agent is an earlier agent for FulcrumCore. To adopt a VM means to map an existing VM to a service. Each row of
the file is a pair of a service and a VMID, and gets an outcome. If the file names several existing VMs for one
service, or several services for one VM, these pairs are refused: an operator must choose the right one.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from executor.cli.adoption import Adoption
from executor.cli.adoption_checks import (
    ServiceMissing,
    VmNotFound,
    check_service_and_return_id,
    check_service_marker,
    find_vm_to_adopt,
)
from executor.cli.adoption_sources import AdoptionRow, read_rows
from executor.cli.arguments import CommandFailed, UnusableArgument, confirm
from executor.cli.clients import Clients
from executor.cli.output import show_json, show_text
from executor.cli.store import open_database
from executor.cli.tables import show_heading, show_rows
from executor.database import mappings
from executor.database.engine import read_only_session
from executor.errors import EXIT_FAILURE, EXIT_SOME_FAILED, JobError, SmithError
from executor.model import MappingState
from executor.proxmox.rows import VmRow
from executor.views.text import count_with_noun

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine

#: The columns of the printed table: maps each key of a row to the heading of its column.
COLUMNS = {"service_id": "SERVICE", "vmid": "VMID", "name": "NAME", "outcome": "OUTCOME", "why": "WHY"}


class Outcome(StrEnum):
    """What happens, or would happen, to the VM and the service of a pair."""

    TO_ADOPT = "would be adopted"
    ADOPTED = "adopted"
    UNCHANGED = "adopted before"  #: the marker and an up-to-date mapping exist already, so nothing is changed
    LEFT_OUT = "left out"  #: FulcrumCore has deleted the service or does not know it, or Proxmox does not list the VM
    REFUSED = "refused"  #: the operator must decide, or repair something


@dataclass(frozen=True, kw_only=True)
class CheckedPair:
    """A service and a VMID from one row of the file, and the outcome for them."""

    row: AdoptionRow
    outcome: Outcome
    why: str = ""
    adoption: Adoption | None = None  #: the service and the VM; None if a check has failed
    is_service_mapped_to_vm: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """The values of the pair's row in the table, which are also its fields in `--json`."""
        name = self.adoption.vm.name if self.adoption is not None else None
        identity = {"service_id": self.row.service_id, "vmid": self.row.vmid, "name": name}
        return identity | {"outcome": self.outcome.value, "why": self.why or None}


def adopt(  # noqa: PLR0913 (the options of the command)
    clients: Clients, file: Path, reason: str, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Adopt the VMs of the file, and print the outcome of each pair.

    Raises typer.Exit with EXIT_FAILURE if all pairs are refused, and with EXIT_SOME_FAILED if only some are refused.
    """
    rows = read_rows(file)
    with open_database(clients.settings) as engine:
        pairs = _check_pairs(clients, engine, rows, as_json=as_json)
        pairs_to_adopt = [pair for pair in pairs if pair.outcome is Outcome.TO_ADOPT]
        if pairs_to_adopt and not dry_run:
            if not yes:
                _show_pairs(pairs, as_json=False)
            confirm(f"Adopt {count_with_noun(len(pairs_to_adopt), 'VM')}?", yes=yes)
            pairs = [_adopt_pair(pair, reason) for pair in pairs]
    _show_pairs(pairs, as_json=as_json)
    if dry_run and not as_json:
        show_text("nothing was changed")
    refused_count = sum(pair.outcome is Outcome.REFUSED for pair in pairs)
    if refused_count:
        raise typer.Exit(EXIT_FAILURE if refused_count == len(pairs) else EXIT_SOME_FAILED)


def _check_pairs(clients: Clients, engine: Engine, rows: Sequence[AdoptionRow], *, as_json: bool) -> list[CheckedPair]:
    """Return the outcome of each pair. Nothing is changed."""
    vm_rows = clients.proxmox.vms()
    playbook_output = sys.stderr if as_json else sys.stdout  # for the playbook that writes a marker
    pairs = [_check_pair(clients, engine, vm_rows, row, playbook_output) for row in rows]
    return _refuse_contradictions(pairs)


def _check_pair(
    clients: Clients, engine: Engine, vm_rows: Sequence[VmRow], row: AdoptionRow, playbook_output: Any
) -> CheckedPair:
    """Return the outcome of one pair. Contradictions between pairs are not checked here."""
    if row.problem or row.vmid is None:  # The row's service id or VMID is not valid.
        return CheckedPair(row=row, outcome=Outcome.REFUSED, why=row.problem)
    # The checks change nothing, and raise an error if the VM cannot be adopted. With `may_write_marker=True`, a missing
    # marker is no error, because the adoption writes it later. `check_mappings` raises an error if a mapping or a
    # running playbook forbids the adoption, and returns whether the service is already mapped to the VM.
    try:
        service_id = check_service_and_return_id(clients, row.service_id)
        vm = find_vm_to_adopt(clients, vm_rows, row.vmid)
        adoption = Adoption(
            engine=engine,
            settings=clients.settings,
            service_id=service_id,
            vm=vm,
            has_marker=check_service_marker(vm, service_id, may_write_marker=True),
            playbook_output=playbook_output,
        )
        is_service_mapped_to_vm = adoption.check_mappings()
    except (ServiceMissing, VmNotFound) as error:
        return CheckedPair(row=row, outcome=Outcome.LEFT_OUT, why=str(error))
    except (UnusableArgument, CommandFailed, JobError) as error:  # JobError: for example, the VM's node is down
        return CheckedPair(row=row, outcome=Outcome.REFUSED, why=str(error))
    is_unchanged = is_service_mapped_to_vm and adoption.has_marker and _is_mapping_up_to_date(engine, adoption)
    outcome = Outcome.UNCHANGED if is_unchanged else Outcome.TO_ADOPT
    return CheckedPair(row=row, outcome=outcome, adoption=adoption, is_service_mapped_to_vm=is_service_mapped_to_vm)


def _is_mapping_up_to_date(engine: Engine, adoption: Adoption) -> bool:
    """Return whether the service's mapping is active and has the VM's name.

    The mapping of a VM whose deletion is scheduled counts as up to date. Otherwise the VM would be adopted, and the
    adoption would cancel the deletion.
    """
    with read_only_session(engine) as session:
        mapping = mappings.find_current_mapping(session, adoption.service_id)
    if mapping is None:
        return False
    is_active_with_vm_name = mapping.state == MappingState.ACTIVE and mapping.name == adoption.vm.name
    return is_active_with_vm_name or mapping.state == MappingState.PENDING_DELETION


def _refuse_contradictions(pairs: Sequence[CheckedPair]) -> list[CheckedPair]:
    """Return the pairs. A pair with the outcome TO_ADOPT becomes REFUSED if the file contradicts it.

    The file contradicts a pair if it names several VMs for the pair's service, or several services for the pair's VM.
    Only pairs that passed the checks of `_check_pair` are counted.
    """
    pairs_that_passed_checks = [pair for pair in pairs if pair.adoption is not None]
    vm_count_by_service = Counter(pair.row.service_id for pair in pairs_that_passed_checks)
    service_count_by_vmid = Counter(pair.row.vmid for pair in pairs_that_passed_checks)

    def refuse_if_contradictory(pair: CheckedPair) -> CheckedPair:
        if pair.outcome is not Outcome.TO_ADOPT:
            return pair
        if vm_count_by_service[pair.row.service_id] > 1:
            why = "the file names several existing VMs for this service: adopt the right VM with --service and --vmid"
        elif service_count_by_vmid[pair.row.vmid] > 1:
            why = (
                "the file names several services for this VM: adopt it for the right service with --service and --vmid"
            )
        else:
            return pair
        return replace(pair, outcome=Outcome.REFUSED, why=why)

    return [refuse_if_contradictory(pair) for pair in pairs]


def _adopt_pair(pair: CheckedPair, reason: str) -> CheckedPair:
    """Adopt the VM of a pair with the outcome TO_ADOPT. If the adoption fails, the pair becomes REFUSED."""
    if pair.outcome is not Outcome.TO_ADOPT or pair.adoption is None:
        return pair
    try:
        pair.adoption.execute(reason, is_service_mapped_to_vm=pair.is_service_mapped_to_vm)
    except SmithError as error:
        return replace(pair, outcome=Outcome.REFUSED, why=str(error))
    marker_text = "" if pair.adoption.has_marker else "the service's marker was written into the VM"
    return replace(pair, outcome=Outcome.ADOPTED, why=marker_text)


def _show_pairs(pairs: Sequence[CheckedPair], *, as_json: bool) -> None:
    """Print a row for each pair, and the number of pairs with each outcome; or print one JSON list of the pairs."""
    rows = [pair.fields for pair in pairs]
    if as_json:
        show_json(rows)
        return
    show_heading("Rows of the file")
    show_rows(rows, COLUMNS, if_empty="the file has no rows")
    counts = Counter(pair.outcome for pair in pairs)
    show_text(", ".join(f"{counts[outcome]} {outcome.value}" for outcome in Outcome if counts[outcome]) or "no rows")
