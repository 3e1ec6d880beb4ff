"""Stores and shows the result of `smith play`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from executor.cli import play_plan
from executor.cli.ansible_playbook import PlaybookRequest
from executor.cli.mapping_changes import record_change
from executor.cli.output import show_error, show_json, show_text
from executor.cli.tables import show_fields, show_heading
from executor.database import audit, mappings
from executor.database.engine import transaction
from executor.errors import DatabaseError
from executor.model import JobResult

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine

    from executor.database.tables.mappings import Mapping

#: A playbook fails if a service requests, for example, a bridge that the settings do not offer. Its error message is
#: shown to operators and to customers, so the message names no settings. This maps a part of the message to the
#: settings.
SETTINGS_OF_OFFERED_VALUES = {
    "the bridge ": "PROXMOX_BRIDGE and PROXMOX_BRIDGES",
    "the VLAN ": "PROXMOX_VLANS",
    "the storage ": "PROXMOX_STORAGE, PROXMOX_STORAGES and PROXMOX_BACKUP_STORAGE",
    "the tag ": "PROXMOX_TAGS",
}


def store_in_mapping(engine: Engine | None, mapping: Mapping | None, result: JobResult) -> bool:
    """Store values from the result of a successful run, such as the VM's node, in the service's mapping.

    `engine` is None if there is no database, and `mapping` is None without the option --service.
    If the mapping changes, `record_change` writes an audit entry with the verb `play`.
    A problem is printed and not raised, because the playbook has already changed the VM. Returns whether the values
    were stored.
    """
    if engine is None or mapping is None or not result.succeeded:
        return False
    if result.vm.get("vmid") != mapping.vmid:
        reported_vmid = result.vm.get("vmid")
        show_error(f"the mapping of VM {mapping.vmid} is not changed: the playbook reports another VM, {reported_vmid}")
        return False
    try:
        with transaction(engine) as session:
            current_mapping = mappings.get_one(session, mapping.id)
            columns_before = audit.column_values(current_mapping, audit.MAPPING_COLUMNS)
            mappings.apply_result(session, mapping.id, result.vm)
            session.refresh(current_mapping)
            if columns_before != audit.column_values(current_mapping, audit.MAPPING_COLUMNS):
                # The audit entry about the start of the run already contains the operator's reason (--reason).
                record_change(session, "play", current_mapping, columns_before, reason="")
    except DatabaseError as error:
        show_error(f"the mapping could not be written, although the playbook has changed the VM: {error}")
        return False
    return True


def result_document(
    result: JobResult, *, run_ident: str, is_check_mode: bool, is_mapping_updated: bool
) -> dict[str, Any]:
    """Return the result of a run as a dictionary for `--json`.

    `run_ident` is '' if the run is not stored in the database, for example in check mode.
    """
    return {
        "succeeded": result.succeeded,
        "error_code": result.code,
        "error_message": result.operator_message or None,
        "check": is_check_mode,
        "mapping_updated": is_mapping_updated,
        "run_ident": run_ident or None,
        "vm": result.vm,
    }


def show_result(  # noqa: PLR0913 (each value decides what is shown)
    request: PlaybookRequest,
    result: JobResult,
    mapping: Mapping | None,
    *,
    run_ident: str,
    is_mapping_updated: bool,
    as_json: bool,
) -> None:
    """Print the result for operators, or as JSON."""
    is_check_mode = request.is_check_mode
    if as_json:
        show_json(
            result_document(
                result, run_ident=run_ident, is_check_mode=is_check_mode, is_mapping_updated=is_mapping_updated
            )
        )
        return
    if result.vm:
        show_heading("Plan" if is_check_mode else "Result")
        if is_check_mode:
            _show_plan(result.vm)
        else:
            show_fields(result.vm)
    if not result.succeeded:
        show_error(result.operator_message)
        if hint := offered_values_hint(result.operator_message):
            show_error(hint)
    elif is_check_mode:
        # `planned` contains the changes that the playbook would make. They were not made.
        show_text(
            "check mode: these changes were not made"
            if result.vm.get("planned")
            else "check mode: nothing would be changed"
        )
    elif mapping is None:
        show_text("no mapping was changed, because a mapping is updated only with --service")
    elif is_mapping_updated:
        show_text(f"the mapping of service {mapping.service_id} is up to date")
    else:
        show_text("no mapping was changed")
    if run_ident:
        show_text(f"`smith runs log {run_ident}` shows the output of the playbook again")


def _show_plan(vm: dict[str, Any]) -> None:
    """Print the VM's identity and, in sentences, the changes that the playbook would make."""
    show_fields({name: vm.get(name) for name in ("vmid", "name", "node", "status")})
    if planned_changes := vm.get("planned"):
        for line in play_plan.describe_changes(planned_changes):
            show_text(f"  {line}")


def offered_values_hint(message: str) -> str:
    """If the message says that a value is not offered, return a text that names the settings; otherwise return ''."""
    if "is not offered" not in message:
        return ""
    settings = next((names for text, names in SETTINGS_OF_OFFERED_VALUES.items() if text in message), "")
    return f"the values that may be requested are in {settings}" if settings else ""
