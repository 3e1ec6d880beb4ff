"""`smith mappings`: lists the VM of each service, and shows a mapping with its history."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from executor.cli.arguments import AsJson, UnknownReference
from executor.cli.help_text import examples
from executor.cli.output import elapsed, short, show_json
from executor.cli.store import reading_store
from executor.cli.tables import show_fields, show_heading, show_rows
from executor.database import mappings
from executor.database.tables import Mapping, utc_now
from executor.model import MappingState

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
#: The column that is added to the table when the deletion of a listed VM is scheduled.
PENDING_DELETION_COLUMN = {"destroyed_in": "DELETED IN"}
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
    "smith mappings list --state vm_lost",
    "smith mappings list --all --json",
)
def list_mappings(
    everything: Annotated[bool, typer.Option("--all", help="Include mappings of deleted VMs.")] = False,
    state: Annotated[
        list[MappingState] | None, typer.Option("--state", help="Only these states; may be repeated.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1_000_000, help="At most this many, the newest first.")
    ] = 1000,
    as_json: AsJson = False,
) -> None:
    """List mappings, the newest first.

    Mappings of deleted VMs are listed only with --all.
    """
    # Without states, `mappings.list_mappings` returns all mappings that are not deleted.
    states = list(MappingState) if everything and not state else state or []
    with reading_store() as store:
        found = mappings.list_mappings(store.session, states=states, limit=limit)
    if as_json:
        show_json([_json_fields(mapping) for mapping in found])
        return
    now = utc_now()
    rows = [
        _json_fields(each) | {"service": short(each.service_id), "updated": elapsed(each.updated_at, now)}
        for each in found
    ]
    pending = [each for each in found if each.state == MappingState.PENDING_DELETION]
    for row, mapping in zip(rows, found, strict=True):
        row["destroyed_in"] = elapsed(now, mapping.delete_at) if mapping in pending and mapping.delete_at else None
    show_rows(rows, COLUMNS | (PENDING_DELETION_COLUMN if pending else {}), if_empty="no mappings match")


@examples(
    "smith mappings show 100123",
    "smith mappings show web-1-8f2c0a11 --json",
)
def show_mapping(
    reference: Annotated[str, typer.Argument(metavar="REF", help="VMID, VM name, service id or its beginning.")],
    as_json: AsJson = False,
) -> None:
    """Show a mapping with its history.

    The history has the earlier VMs of the service, and the earlier services of the VMID.
    """
    with reading_store() as store:
        found = mappings.find(store.session, reference.strip()) if reference.strip() else []
    if not found:
        raise UnknownReference(f"no mapping matches {reference}: `smith mappings list --all` shows them")
    # The mapping that is not deleted comes first. The deleted mappings, which are its history, follow.
    ordered = sorted(found, key=lambda mapping: mapping.state == MappingState.DELETED)
    services = {mapping.service_id for mapping in found}
    current = ordered[0]
    # A VMID may have belonged to several services, which are its history. An id or a name must match only one service.
    if len(services) > 1 and not reference.strip().isdigit():
        names = ", ".join(sorted(services))
        raise UnknownReference(f"more than one service begins with {reference}: {names}")
    if as_json:
        show_json(_json_fields(current) | {"history": [_json_fields(mapping) for mapping in ordered[1:]]})
        return
    show_fields(_json_fields(current))
    if ordered[1:]:
        show_heading("History")
        show_rows([_json_fields(mapping) for mapping in ordered[1:]], HISTORY_COLUMNS, if_empty="")


def _json_fields(mapping: Mapping) -> dict[str, Any]:
    """Return all columns of a mapping, with the keys of `--json`."""
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
