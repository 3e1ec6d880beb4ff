"""Applies the repair that a finding of a drift check proposes. A repair changes a mapping, never a VM, and is audited.

A finding describes a difference between the mappings, Proxmox and FulcrumCore. A mapping says which VM serves which
service. The module `volumes_left` removes notes about volumes that were left behind when a VM was deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from executor.database import audit, busy_services, mappings, volumes_left
from executor.database.engine import transaction
from executor.database.tables.mappings import Mapping
from executor.drift import rows
from executor.drift.facts import Finding, MappingFacts, Repair

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session


def apply_repair(engine: Engine, cluster: str, finding: Finding, *, who: str, reason: str = "") -> bool:
    """Apply the repair that a finding proposes. Return whether the repair was applied.

    `cluster` is the name of the Proxmox cluster (SMITH_CLUSTER). `who` (an operator, or the agent) and `reason` are
    stored in the audit entry. The repair is not applied if the mapping has changed since the drift check, or if the
    service is busy: the service has a pending or processing job, a job whose report to FulcrumCore is due, or a run
    that an operator started.
    """
    if finding.repair is None:
        return False
    with transaction(engine) as session:
        row = mappings.get(session, finding.mapping.id) if finding.mapping else None
        if busy_services.find_busy_service_ids(session, finding.service_id) or _has_mapping_changed(row, finding):
            return False
        values_before = audit.column_values(row, audit.MAPPING_COLUMNS)
        change_mapping = _CHANGE_BY_REPAIR[finding.repair]
        if not change_mapping(session, cluster, finding):
            return False
        session.expire_all()  # so that the new values are read from the database
        if finding.repair is Repair.ADOPT:
            row = mappings.find_current_mapping(session, finding.service_id)  # the mapping that is not deleted
        audit.add_entry(
            session,
            who=who,
            verb=finding.repair.value,
            subject_kind="mapping",
            subject_id=finding.service_id,
            before=values_before,
            after=audit.column_values(row, audit.MAPPING_COLUMNS),
            reason=reason or f"{finding.kind}: {finding.text}",
        )
    return True


def _has_mapping_changed(row: Mapping | None, finding: Finding) -> bool:
    """Return whether the mapping's row in the database differs from the mapping in the finding."""
    mapping_now = None if row is None else rows.mapping_facts(row)
    return mapping_now != finding.mapping


def _correct_node(session: Session, _cluster: str, finding: Finding) -> bool:
    mappings.store_node(session, _mapping_of(finding).id, finding.node)
    return True


def _mark_vm_lost(session: Session, _cluster: str, finding: Finding) -> bool:
    """Set the mapping's state to vm_lost, because its VM no longer exists."""
    mappings.mark_vm_lost(session, _mapping_of(finding).id, finding.text)
    return True


def _remove_volumes_note(session: Session, _cluster: str, finding: Finding) -> bool:
    """Clear the mapping's `note`. It names volumes of a deleted VM. The drift check found that the volumes are gone."""
    volumes_left.remove_volumes_note(session, _mapping_of(finding).id)
    return True


def _forget_mapping(session: Session, _cluster: str, finding: Finding) -> bool:
    """Mark the mapping as deleted. Its `note` becomes the text of the finding."""
    mappings.mark_mapping_deleted(session, _mapping_of(finding).id, finding.text)
    return True


def _mapping_of(finding: Finding) -> MappingFacts:
    assert finding.mapping is not None  # noqa: S101 (without a mapping, a drift check proposes only ADOPT)
    return finding.mapping


def _adopt_vm(session: Session, cluster: str, finding: Finding) -> bool:
    assert finding.vmid is not None  # noqa: S101 (a drift check proposes ADOPT only for a guest, which has a VMID)
    mapping = mappings.adopt(
        session,
        service_id=finding.service_id,
        cluster=cluster,
        vmid=finding.vmid,
        name=finding.name,
        node=finding.node,
        kind=finding.guest_kind,
    )
    return mapping is not None  # None if the service has another VM, or if the VMID is mapped to another service


#: The function for each repair. Each function changes the mapping, and returns False if nothing was changed.
_CHANGE_BY_REPAIR: dict[Repair, Callable[[Session, str, Finding], bool]] = {
    Repair.CORRECT_NODE: _correct_node,
    Repair.MARK_VM_LOST: _mark_vm_lost,
    Repair.CLEAR_VOLUMES_NOTE: _remove_volumes_note,
    Repair.FORGET: _forget_mapping,
    Repair.ADOPT: _adopt_vm,
}
