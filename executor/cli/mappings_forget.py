"""`smith mappings forget`: marks a mapping as deleted. The VM is not changed."""

from __future__ import annotations

from typing import Annotated

import typer

from executor.cli.arguments import AsJson, CommandFailed, MappingReference, confirm
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.mapping_changes import find_mapping, record_change, require_no_running_playbook
from executor.cli.output import show_outcome
from executor.cli.store import open_database
from executor.database import audit, mappings
from executor.database.engine import read_only_session, transaction
from executor.model import MappingState


@examples(
    "smith mappings forget 100123 --yes                a VMID, a VM's name, or the beginning of a service's id",
    "smith mappings forget web-1-8f2c0a11 --yes --reason 'moved to another cluster'",
)
def forget(
    reference: MappingReference,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Stored with the mapping and in the audit log.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Mark a mapping as deleted; no VM is changed.

    If the VM has the service's marker (a line in its description), `smith drift` reports the VM as `unmapped_vm` from
    then on.
    """
    settings = open_settings()
    with open_database(settings) as engine:
        with read_only_session(engine) as session:
            mapping = find_mapping(session, reference.strip())
        confirm(
            f"Mark the mapping of VM {mapping.vmid} ({mapping.name}) to service {mapping.service_id} as deleted? "
            "The VM is not changed.",
            yes=yes,
        )
        # The transaction is opened after the confirmation, so that no transaction is open while the operator answers.
        with transaction(engine) as session:
            require_no_running_playbook(session, mapping.service_id)
            mapping_to_change = mappings.get_one(session, mapping.id)
            # The state DELETED is the state of the mapping: its VM may still exist.
            if mapping_to_change.state == MappingState.DELETED:
                raise CommandFailed(f"the mapping of VM {mapping.vmid} was marked as deleted in the meantime")
            columns_before = audit.column_values(mapping_to_change, audit.MAPPING_COLUMNS)
            note = f"forgotten by {audit.operator_name()}"
            if reason:
                note += f": {reason}"
            mappings.mark_mapping_deleted(session, mapping.id, note)
            record_change(session, "forget", mapping_to_change, columns_before, reason)
    text = f"VM {mapping.vmid} ({mapping.name}) is no longer mapped to a service; the VM itself was not changed"
    show_outcome(text, as_json=as_json, vmid=mapping.vmid, name=mapping.name, service_id=mapping.service_id)
