"""Stores which VM serves which service: step 4 of a job's processing (see ARCHITECTURE.md).

A VMID is reserved for a service before any request to Proxmox uses the VMID. A unique index allows only one mapping
that is not deleted for each VMID of a cluster, so two creates never use the same VMID. The rows of deleted mappings
stay as history: the VMID of a deleted mapping is not reused for some time (its quarantine). No function commits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from executor.database.statements import is_row_id
from executor.database.tables import Mapping, utc_now
from executor.errors import ErrorCode, JobError
from executor.model import GuestKind, MappingState

#: How many random VMIDs are tried before the range is searched from its start.
RANDOM_TRIES = 64
#: Length of the first part of a VM's name. A dash and eight digits follow this part, and the whole name must be a DNS
#: label, which has at most 63 characters.
MAX_HOST_PART_LENGTH = 54

#: The name of a cluster, and the lowest and the highest VMID for new VMs on this cluster.
VmidRange = tuple[str, int, int]


def marker_for(service_id: str) -> str:
    """Return the marker: the line in a VM's description that names the VM's service."""
    return f"smith-uid={service_id}"


def vm_name(host: str, service_id: str) -> str:
    """Return the name of a VM: a first part made from `host`, a dash, and the first eight digits of the service id.

    `host` may be any text from outside. In the name, each sequence of characters other than letters and digits becomes
    one dash, and letters become lower case. If no character of `host` is usable, the first part is `vm`.
    """
    folded = re.sub(r"[^a-z0-9]+", "-", host.lower().encode("ascii", "ignore").decode())
    label = folded[:MAX_HOST_PART_LENGTH].strip("-") or "vm"
    return f"{label}-{service_id.replace('-', '')[:8].lower()}"


def current(session: Session, service_id: str) -> Mapping | None:
    """Return the service's mapping that is not deleted, None if the service has no such mapping."""
    stmt = select(Mapping).where(Mapping.service_id == service_id, Mapping.state != MappingState.DELETED)
    return session.scalar(stmt)


def get(session: Session, mapping_id: int) -> Mapping | None:
    """Return the mapping with this row id, None if it does not exist."""
    return session.get(Mapping, mapping_id)


def get_one(session: Session, mapping_id: int) -> Mapping:
    """Return the mapping with this row id. The caller's transaction raises DatabaseRefused if it does not exist."""
    return session.get_one(Mapping, mapping_id)


def all_current(session: Session) -> Sequence[Mapping]:
    """Return every mapping that is not deleted."""
    return session.scalars(select(Mapping).where(Mapping.state != MappingState.DELETED)).all()


def pick_vmid(session: Session, vmids: VmidRange, *, quarantine_s: float, taken: set[int]) -> int:
    """Return a VMID of the range `vmids` that is neither mapped, nor in quarantine, nor in `taken`.

    `taken` holds the VMIDs of the guests in Proxmox. A deleted mapping's VMID is in quarantine for `quarantine_s` after
    the deletion. Raises JobError CAPACITY when the range has no such VMID.
    """
    cluster, low, high = vmids
    quarantined_since = utc_now() - timedelta(seconds=quarantine_s)
    is_used = (Mapping.state != MappingState.DELETED) | (Mapping.deleted_at > quarantined_since)
    stmt = select(Mapping.vmid).where(Mapping.cluster == cluster, Mapping.vmid.between(low, high), is_used)
    used = set(session.scalars(stmt)) | taken
    for _ in range(RANDOM_TRIES):
        vmid = random.randint(low, high)  # noqa: S311 (not for security)
        if vmid not in used:
            return vmid
    for vmid in range(low, high + 1):
        if vmid not in used:
            return vmid
    raise JobError(ErrorCode.CAPACITY, f"no VMID is free between {low} and {high}")


def reserve(  # noqa: PLR0913 (one column each)
    session: Session, *, service_id: str, cluster: str, vmid: int, name: str, kind: str = GuestKind.QEMU
) -> Mapping | None:
    """Reserve the VMID for the service. Returns None when the VMID or the service already has a mapping."""
    now = utc_now()
    mapping = Mapping(
        service_id=service_id,
        cluster=cluster,
        vmid=vmid,
        kind=kind,
        name=name,
        marker=marker_for(service_id),
        state=MappingState.RESERVED,
        created_at=now,
        updated_at=now,
    )
    try:
        with session.begin_nested():
            session.add(mapping)
            session.flush()
    except IntegrityError:
        return None
    return mapping


def insert_active(  # noqa: PLR0913 (one column each)
    session: Session,
    *,
    service_id: str,
    cluster: str,
    vmid: int,
    name: str,
    node: str,
    kind: str = GuestKind.QEMU,
) -> Mapping | None:
    """Create an active mapping for a VM that has the service's marker. Returns None in the same cases as `reserve`."""
    mapping = reserve(session, service_id=service_id, cluster=cluster, vmid=vmid, name=name, kind=kind)
    if mapping is not None:
        mapping.state, mapping.node, mapping.note = MappingState.ACTIVE, node, "found by its marker"
    return mapping


def adopt(  # noqa: PLR0913 (one column each)
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

    If the service is mapped to this VMID already, this mapping is updated. If the service is mapped to another VMID
    and the VM with that VMID is lost, the old mapping is marked as deleted first. Returns None, without a change, when
    the service has another VM that is not lost, or when the VMID is mapped to another service.
    """
    existing = current(session, service_id)
    if existing is not None and (existing.vmid, existing.cluster) == (vmid, cluster):
        now, columns = utc_now(), {"node": node, "name": name, "kind": kind, "note": "found by its marker"}
        _update(session, existing.id, now=now, state=MappingState.ACTIVE, **columns)
        return existing
    if existing is not None and existing.state != MappingState.VM_LOST:
        return None
    with session.begin_nested() as savepoint:
        if existing is not None:
            mark_deleted(session, existing.id, f"the VM was found on VMID {vmid}")
        mapping = insert_active(
            session, service_id=service_id, cluster=cluster, vmid=vmid, name=name, node=node, kind=kind
        )
        if mapping is None:
            savepoint.rollback()
    return mapping


def record_node(session: Session, mapping_id: int, node: str) -> None:
    """Store the VM's node. Actions do not rely on the stored node: they read the VM's node from Proxmox."""
    _update(session, mapping_id, now=utc_now(), node=node)


def apply_result(session: Session, mapping_id: int, vm: dict[str, Any]) -> None:
    """Store the state of the VM that `vm`, the result of a playbook, describes.

    The mapping becomes deleted if the VM is absent, pending deletion if `vm` has a `delete_at` (seconds since the
    epoch), and active otherwise. The command `smith mappings recall` passes an empty `vm`, which also makes the mapping
    active.
    """
    now = utc_now()
    if vm.get("status") == "absent":
        values: dict[str, Any] = {"state": MappingState.DELETED, "deleted_at": now}
    else:
        delete_at = datetime.fromtimestamp(vm["delete_at"], UTC) if vm.get("delete_at") else None
        state = MappingState.PENDING_DELETION if delete_at else MappingState.ACTIVE
        values = {"state": state, "delete_at": delete_at, "note": None}
        values |= {"node": vm["node"]} if vm.get("node") else {}
        values |= {"mac_address": vm["mac_address"]} if vm.get("mac_address") else {}
    _update(session, mapping_id, now=now, **values)


def mark_deleted(session: Session, mapping_id: int, note: str) -> None:
    """Mark a mapping as deleted, and store the reason (`note`). The quarantine of its VMID begins now."""
    now = utc_now()
    _update(session, mapping_id, now=now, state=MappingState.DELETED, deleted_at=now, note=note)


def mark_vm_lost(session: Session, mapping_id: int, note: str) -> None:
    """Store that the VM no longer exists, and the reason (`note`).

    The mapping is not deleted, so that a later delete job of the service finds it and succeeds.
    """
    _update(session, mapping_id, now=utc_now(), state=MappingState.VM_LOST, note=note)


def _update(session: Session, mapping_id: int, *, now: Any, **values: Any) -> None:
    stmt = update(Mapping).where(Mapping.id == mapping_id, Mapping.state != MappingState.DELETED)
    session.execute(stmt.values(updated_at=now, **values))


def active(session: Session, cluster: str | None = None) -> Sequence[Mapping]:
    """Return the active mappings of one cluster, or of all clusters, ordered by VMID."""
    stmt = select(Mapping).where(Mapping.state == MappingState.ACTIVE).order_by(Mapping.vmid)
    return session.scalars(stmt if cluster is None else stmt.where(Mapping.cluster == cluster)).all()


def due_for_deletion(session: Session, cluster: str, limit: int = 100) -> Sequence[Mapping]:
    """Return the mappings pending deletion whose VM may be deleted now, the one with the earliest `delete_at` first."""
    stmt = select(Mapping).where(Mapping.state == MappingState.PENDING_DELETION, Mapping.cluster == cluster)
    return session.scalars(stmt.where(Mapping.delete_at <= utc_now()).order_by(Mapping.delete_at).limit(limit)).all()


def list_mappings(session: Session, *, states: Sequence[str] = (), limit: int = 1000) -> Sequence[Mapping]:
    """Return the mappings in these states, newest first. Without `states`, return all mappings that are not deleted."""
    stmt = select(Mapping).order_by(Mapping.id.desc()).limit(limit)
    if states:
        return session.scalars(stmt.where(Mapping.state.in_(states))).all()
    return session.scalars(stmt.where(Mapping.state != MappingState.DELETED)).all()


def find(session: Session, reference: str) -> Sequence[Mapping]:
    """Return the mappings that `reference` names, deleted mappings included, newest first.

    `reference` is a VMID, the name of a VM, a service id, or the prefix of service ids.
    """
    if not reference:
        return []
    if is_row_id(reference):
        condition = Mapping.vmid == int(reference)
    else:
        condition = (Mapping.name == reference) | Mapping.service_id.startswith(reference.lower(), autoescape=True)
    return session.scalars(select(Mapping).where(condition).order_by(Mapping.id.desc()).limit(100)).all()


def count_by_state(session: Session, *, with_deleted: bool = True) -> dict[str, int]:
    """Return the number of mappings in each state, also 0 for a state without mappings."""
    states = [state for state in MappingState if with_deleted or state is not MappingState.DELETED]
    stmt = select(Mapping.state, func.count()).group_by(Mapping.state)
    if not with_deleted:
        stmt = stmt.where(Mapping.state != MappingState.DELETED)
    return {state.value: 0 for state in states} | dict(session.execute(stmt).all())
