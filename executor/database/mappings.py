"""Stores which VM serves which service: step 4 of a job's processing (see ARCHITECTURE.md).

A VMID is reserved for a service before any request to Proxmox uses the VMID. A current mapping is one that is not
deleted. A unique index allows at most one current mapping for each VMID of a cluster, so two services never have the
same VMID at the same time. The rows of deleted mappings stay as history until `prune` removes them. After a mapping is
deleted, its VMID is in quarantine: for some time, no new mapping uses the VMID. If volumes of the deleted VM still
exist, no new mapping uses the VMID until these volumes are removed. No function commits: the caller opens and commits
the transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from executor.database.mapping_conditions import (
    IS_CURRENT,
    IS_DELETED,
    NOTE_NAMES_VOLUMES,
    VOLUME_SEPARATOR,
    VOLUMES_LEFT_PREFIX,
)
from executor.database.statements import execute_and_count
from executor.database.tables.mappings import Mapping
from executor.database.times import utc_now
from executor.model import GuestKind, MappingState
from executor.shared import marker

#: The note of a mapping whose VM was found by its marker. A marker is a line in a VM's description that names the VM's
#: service.
NOTE_FOUND_BY_MARKER = "found by its marker"
#: The maximum number of mappings that `mappings_due_for_deletion` returns by default.
MAX_DUE_MAPPINGS = 100


def find_current_mapping(session: Session, service_id: str) -> Mapping | None:
    """Return the service's current mapping, or None if the service has no current mapping."""
    stmt = select(Mapping).where(Mapping.service_id == service_id, IS_CURRENT)
    return session.scalar(stmt)


def get(session: Session, mapping_id: int) -> Mapping | None:
    """Return the mapping with this row id, or None if it does not exist."""
    return session.get(Mapping, mapping_id)


def get_one(session: Session, mapping_id: int) -> Mapping:
    """Return the mapping with this row id. Raises NoResultFound if it does not exist."""
    return session.get_one(Mapping, mapping_id)


def all_current_mappings(session: Session) -> Sequence[Mapping]:
    """Return all current mappings."""
    return session.scalars(select(Mapping).where(IS_CURRENT)).all()


def mapped_vmids(session: Session, cluster: str) -> frozenset[int]:
    """Return the VMIDs of a cluster's current mappings."""
    return frozenset(session.scalars(select(Mapping.vmid).where(IS_CURRENT, Mapping.cluster == cluster)))


def reserve(  # noqa: PLR0913 (one parameter for each column)
    session: Session,
    *,
    service_id: str,
    cluster: str,
    vmid: int,
    name: str,
    kind: str = GuestKind.QEMU,
    tenant_id: str | None = None,
) -> Mapping | None:
    """Create a mapping that reserves the VMID for the service.

    `tenant_id` is the id of the participant in FulcrumCore that uses the service.
    Returns None when the VMID or the service already has a current mapping.
    """
    now = utc_now()
    mapping = Mapping(
        service_id=service_id,
        cluster=cluster,
        vmid=vmid,
        kind=kind,
        name=name,
        marker=marker.marker_for(service_id),
        state=MappingState.RESERVED,
        created_at=now,
        updated_at=now,
        tenant_id=tenant_id,
    )
    try:
        with session.begin_nested():
            session.add(mapping)
            session.flush()
    except IntegrityError:
        return None
    return mapping


def insert_active_mapping(  # noqa: PLR0913 (one parameter for each column)
    session: Session,
    *,
    service_id: str,
    cluster: str,
    vmid: int,
    name: str,
    node: str,
    kind: str = GuestKind.QEMU,
) -> Mapping | None:
    """Create a mapping in the state ACTIVE, for a VM that exists and has the service's marker.

    Returns None when the VMID or the service already has a current mapping.
    """
    mapping = reserve(session, service_id=service_id, cluster=cluster, vmid=vmid, name=name, kind=kind)
    if mapping is not None:
        mapping.state, mapping.node, mapping.note = MappingState.ACTIVE, node, NOTE_FOUND_BY_MARKER
    return mapping


def adopt(  # noqa: PLR0913 (one parameter for each column)
    session: Session,
    *,
    service_id: str,
    cluster: str,
    vmid: int,
    name: str,
    node: str,
    kind: str = GuestKind.QEMU,
) -> Mapping | None:
    """Map an existing VM to a service.

    If the service is mapped to this VMID already, the mapping is updated. If the service is mapped to a VM that is lost
    (it no longer exists), the mapping to the lost VM is marked as deleted, and a new mapping is created. Returns None,
    without a change, when the service has another VM that is not lost, or when the VMID is mapped to another service.
    """
    current_mapping = find_current_mapping(session, service_id)
    if current_mapping is not None and (current_mapping.vmid, current_mapping.cluster) == (vmid, cluster):
        columns = {"node": node, "name": name, "kind": kind, "note": NOTE_FOUND_BY_MARKER}
        _update_current_mapping(session, current_mapping.id, now=utc_now(), state=MappingState.ACTIVE, **columns)
        return current_mapping
    if current_mapping is not None and current_mapping.state != MappingState.VM_LOST:
        return None
    with session.begin_nested() as savepoint:
        if current_mapping is not None:
            mark_mapping_deleted(session, current_mapping.id, f"the service has another VM now: VMID {vmid}")
        new_mapping = insert_active_mapping(
            session, service_id=service_id, cluster=cluster, vmid=vmid, name=name, node=node, kind=kind
        )
        if new_mapping is None:
            savepoint.rollback()
    return new_mapping


def store_node(session: Session, mapping_id: int, node: str) -> None:
    """Store on which Proxmox node the VM is. Playbooks do not use the stored node: they read the node from Proxmox."""
    _update_current_mapping(session, mapping_id, now=utc_now(), node=node)


def apply_result(session: Session, mapping_id: int, vm: dict[str, Any]) -> None:
    """Store the VM's new state in its mapping. `vm` is the result of a playbook.

    If the VM is absent, the mapping becomes deleted; its note names the volumes that still exist. If `vm` has a
    `delete_at` (a Unix time in seconds), the mapping becomes pending deletion. In every other case, the mapping
    becomes active.
    """
    now = utc_now()
    if vm.get("status") == "absent":
        volumes = [str(volume) for volume in vm.get("volumes_left") or []]
        note = {"note": VOLUMES_LEFT_PREFIX + VOLUME_SEPARATOR.join(volumes)} if volumes else {}
        _update_current_mapping(session, mapping_id, now=now, state=MappingState.DELETED, deleted_at=now, **note)
        return
    delete_at = datetime.fromtimestamp(vm["delete_at"], UTC) if vm.get("delete_at") else None
    state = MappingState.PENDING_DELETION if delete_at else MappingState.ACTIVE
    reported_columns = {key: vm[key] for key in ("node", "mac_address") if vm.get(key)}
    _update_current_mapping(
        session, mapping_id, now=now, state=state, delete_at=delete_at, note=None, **reported_columns
    )


def mark_mapping_active(session: Session, mapping_id: int) -> None:
    """Set the mapping's state to ACTIVE. Clear its note and `delete_at`, the time of a scheduled deletion."""
    _update_current_mapping(session, mapping_id, now=utc_now(), state=MappingState.ACTIVE, delete_at=None, note=None)


def mark_mapping_deleted(session: Session, mapping_id: int, note: str) -> None:
    """Mark a mapping as deleted, and store the reason in its `note`. The quarantine of its VMID begins now."""
    now = utc_now()
    _update_current_mapping(session, mapping_id, now=now, state=MappingState.DELETED, deleted_at=now, note=note)


def mark_reserved_mapping_deleted(session: Session, mapping_id: int, note: str) -> None:
    """Mark a reserved mapping as deleted, and store the reason in its `note`.

    A mapping in another state does not change: its VM may exist, and without the mapping, the VM would belong to no
    service.
    """
    now = utc_now()
    stmt = update(Mapping).where(Mapping.id == mapping_id, Mapping.state == MappingState.RESERVED)
    session.execute(stmt.values(updated_at=now, state=MappingState.DELETED, deleted_at=now, note=note))


def mark_vm_lost(session: Session, mapping_id: int, note: str) -> None:
    """Set the mapping's state to VM_LOST, because its VM no longer exists. `note` is the reason.

    The mapping is not marked as deleted, so that a later delete job of the service finds the mapping and succeeds.
    """
    _update_current_mapping(session, mapping_id, now=utc_now(), state=MappingState.VM_LOST, note=note)


def _update_current_mapping(session: Session, mapping_id: int, *, now: datetime, **values: Any) -> None:
    """Update columns of a mapping. A mapping that is marked as deleted does not change."""
    stmt = update(Mapping).where(Mapping.id == mapping_id, IS_CURRENT)
    session.execute(stmt.values(updated_at=now, **values))


def active_mappings(session: Session, cluster: str | None = None) -> Sequence[Mapping]:
    """Return the active mappings of one cluster, or of all clusters, ordered by VMID."""
    stmt = select(Mapping).where(IS_CURRENT, Mapping.state == MappingState.ACTIVE).order_by(Mapping.vmid)
    return session.scalars(stmt if cluster is None else stmt.where(Mapping.cluster == cluster)).all()


def mappings_due_for_deletion(
    session: Session, cluster: str, limit: int = MAX_DUE_MAPPINGS, after: Mapping | None = None
) -> Sequence[Mapping]:
    """Return the mappings that are pending deletion and whose VM may be deleted now, in the order of `delete_at`.

    At most `limit` mappings are returned. With `after`, only mappings that follow this mapping are returned.
    """
    stmt = select(Mapping).where(IS_CURRENT, Mapping.state == MappingState.PENDING_DELETION)
    stmt = stmt.where(Mapping.cluster == cluster)
    if after is not None:
        is_same_time_but_later_row = (Mapping.delete_at == after.delete_at) & (Mapping.id > after.id)
        stmt = stmt.where((Mapping.delete_at > after.delete_at) | is_same_time_but_later_row)
    stmt = stmt.where(Mapping.delete_at <= utc_now()).order_by(Mapping.delete_at, Mapping.id).limit(limit)
    return session.scalars(stmt).all()


def prune(session: Session, *, deleted_before: datetime, limit: int) -> int:
    """Remove at most `limit` rows of mappings that became deleted before `deleted_before`. Return their number.

    A row that names volumes which may still exist is kept.
    """
    old_mapping_ids = select(Mapping.id).where(IS_DELETED, Mapping.deleted_at < deleted_before)
    old_mapping_ids = old_mapping_ids.where(Mapping.note.is_(None) | ~NOTE_NAMES_VOLUMES)
    old_ids = session.scalars(old_mapping_ids.order_by(Mapping.deleted_at).limit(limit)).all()
    return execute_and_count(session, delete(Mapping).where(Mapping.id.in_(old_ids)))
