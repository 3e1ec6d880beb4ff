"""`smith mappings`: lists the VM of each service, and shows a mapping with its history."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor.cli.arguments import AsJson, MappingReference, UnusableArgument, refuse_empty_mapping_reference
from executor.cli.help_text import examples
from executor.cli.output import show_json
from executor.cli.store import read_only_transaction
from executor.cli.tables import show_fields, show_heading, show_rows
from executor.database import mapping_queries
from executor.database.times import utc_now
from executor.model import MappingState
from executor.views.text import elapsed_text, short_id

if TYPE_CHECKING:  # Used only in annotations. The import of SQLAlchemy's ORM is slow.
    from executor.database.tables.mappings import Mapping

#: The columns of the table of mappings: maps each key of a row to the heading of its column.
#: `kind` is `qemu` for a VM, and `lxc` for a container. `note` is the reason for the state, or lists the volumes that a
#: deleted VM may have left in Proxmox.
COLUMNS = {
    "vmid": "VMID",
    "kind": "KIND",
    "name": "NAME",
    "node": "NODE",
    "state": "STATE",
    "service": "SERVICE",
    "cluster": "CLUSTER",
    "mac_address": "MAC",
    "updated": "CHANGED",
    "note": "NOTE",
}
#: An additional column of the table, shown if the deletion of a listed VM is scheduled.
PENDING_DELETION_COLUMN = {"deleted_in": "DELETED IN"}
#: The columns of the table `History` of `smith mappings show`, in the form of COLUMNS.
HISTORY_COLUMNS = {
    "vmid": "VMID",
    "name": "NAME",
    "state": "STATE",
    "service_id": "SERVICE",
    "created_at": "CREATED",
    "deleted_at": "DELETED",
    "note": "NOTE",
}


@examples(
    "smith mappings list",
    "smith mappings list --state vm_lost    VMs that do not exist any more, although no job deleted them",
    "smith mappings list --all --json",
)
def list_mappings(
    include_deleted: Annotated[bool, typer.Option("--all", help="Include deleted mappings.")] = False,
    state: Annotated[
        list[MappingState] | None, typer.Option("--state", help="List only mappings in this state; may be repeated.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1_000_000, help="The maximum number of listed mappings.")
    ] = 1000,
    as_json: AsJson = False,
) -> None:
    """List mappings, the newest first.

    Deleted mappings are listed only with --all or with --state deleted.
    """
    # If `states` is empty, `mapping_queries.list_mappings` returns all mappings that are not deleted.
    states = state or []
    if include_deleted and not state:
        states = list(MappingState)
    with read_only_transaction() as transaction:
        listed_mappings = mapping_queries.list_mappings(transaction.connection, states=states, limit=limit)
    if as_json:
        show_json([_json_fields(mapping) for mapping in listed_mappings])
        return
    columns = dict(COLUMNS)
    if any(mapping.state == MappingState.PENDING_DELETION for mapping in listed_mappings):
        columns |= PENDING_DELETION_COLUMN
    now = utc_now()
    show_rows([_table_row(mapping, now) for mapping in listed_mappings], columns, if_empty="no mappings match")


@examples(
    "smith mappings show 100123",
    "smith mappings show web-1-8f2c0a11 --json",
)
def show_mapping(
    reference: MappingReference,
    as_json: AsJson = False,
) -> None:
    """Show a mapping with its history.

    The history lists the earlier mappings that match the argument. A VMID may have belonged to another service earlier.
    """
    reference = reference.strip()
    refuse_empty_mapping_reference(reference)
    with read_only_transaction() as transaction:
        matches = mapping_queries.find_mappings_by_vm_or_service(transaction.connection, reference)
    if not matches:
        raise UnusableArgument(f"no mapping matches {reference}: `smith mappings list --all` shows the mappings")
    # A service id or a VM's name must match only one service. A VMID may match several, because the VMs of several
    # services may have had this VMID one after the other.
    service_ids = {mapping.service_id for mapping in matches}
    is_reference_a_vmid = all(str(mapping.vmid) == reference.lstrip("0") for mapping in matches)
    if len(service_ids) > 1 and not is_reference_a_vmid:
        raise UnusableArgument(f"more than one service matches {reference}: {', '.join(sorted(service_ids))}")
    # The first mapping is shown, and the others are its history. A mapping that is not deleted is sorted before the
    # deleted mappings, because False is sorted before True.
    shown_mapping, *earlier_mappings = sorted(matches, key=lambda mapping: mapping.state == MappingState.DELETED)
    history = [_json_fields(mapping) for mapping in earlier_mappings]
    if as_json:
        show_json(_json_fields(shown_mapping) | {"history": history})
        return
    show_fields(_json_fields(shown_mapping))
    if history:
        show_heading("History")
        show_rows(history, HISTORY_COLUMNS, if_empty="")


def _table_row(mapping: Mapping, now: datetime) -> dict[str, Any]:
    """Return the fields of `--json`, and the values of the columns that only the table has."""
    deleted_in = None
    if mapping.state == MappingState.PENDING_DELETION and mapping.delete_at:
        deleted_in = elapsed_text(now, mapping.delete_at)  # The time from now until the deletion is due.
    return _json_fields(mapping) | {
        "service": short_id(mapping.service_id),
        "updated": elapsed_text(mapping.updated_at, now),
        "deleted_in": deleted_in,
    }


def _json_fields(mapping: Mapping) -> dict[str, Any]:
    """Return a mapping as a dictionary with the keys of `--json`.

    `marker` is the line in the VM's description that contains the service's id. `deleted_at` is when the mapping was
    marked as deleted. `delete_at` is when a scheduled deletion of the VM is due.
    """
    return {
        "service_id": mapping.service_id,
        "cluster": mapping.cluster,
        "vmid": mapping.vmid,
        "kind": mapping.kind,
        "node": mapping.node,
        "name": mapping.name,
        "state": mapping.state,
        "marker": mapping.marker,
        "mac_address": mapping.mac_address,
        "note": mapping.note,
        "created_at": mapping.created_at,
        "updated_at": mapping.updated_at,
        "deleted_at": mapping.deleted_at,
        "delete_at": mapping.delete_at,
    }
