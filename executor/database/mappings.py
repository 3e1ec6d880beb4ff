"""Step 4 of 7: which VM serves which service, from the reserved VMID to the last trace in the history.

A VMID is written down for a service before Proxmox hears of it (unique on cluster and vmid), so that two creates can
never meet on one id, and a freed id rests before it is given out again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from executor.database.tables import Mapping, utc_now
from executor.errors import ErrorCode, JobError
from executor.model import GuestKind, MappingState

#: How many random draws find a free id before the range is searched from end to end.
RANDOM_DRAWS = 64
#: Longest host part of a VM's name: with a dash and eight digits it stays a DNS label of 63.
HOST_PART_LENGTH = 54

#: Cluster, lowest and highest VMID that may be given out.
VmidRange = tuple[str, int, int]


def marker_for(service_id: str) -> str:
    """Return the line in a VM's description that says whose VM it is."""
    return f"smith-uid={service_id}"


def vm_name(host: str, service_id: str) -> str:
    """Return a DNS label, unique to the service: what `host` leaves of it, and the id's first eight digits.

    Text from outside comes in; letters, digits and single dashes come out. Nothing usable left: `vm`.
    """
    folded = re.sub(r"[^a-z0-9]+", "-", host.lower().encode("ascii", "ignore").decode())
    label = folded[:HOST_PART_LENGTH].strip("-") or "vm"
    return f"{label}-{service_id.replace('-', '')[:8].lower()}"


def current(session: Session, service_id: str) -> Mapping | None:
    """Return the service's mapping unless it was deleted."""
    stmt = select(Mapping).where(Mapping.service_id == service_id, Mapping.state != MappingState.DELETED)
    return session.scalar(stmt)


def get(session: Session, mapping_id: int) -> Mapping | None:
    """Return a mapping by our number."""
    return session.get(Mapping, mapping_id)


def all_current(session: Session) -> Sequence[Mapping]:
    """Return every mapping that was not deleted."""
    return session.scalars(select(Mapping).where(Mapping.state != MappingState.DELETED)).all()


def pick_vmid(session: Session, pool: VmidRange, *, quarantine_s: float, also: set[int]) -> int:
    """Return a VMID of the range that nobody has, that has not been freed lately, and that is not in `also`.

    Raises JobError CAPACITY when the range is used up.
    """
    cluster, low, high = pool
    resting = utc_now() - timedelta(seconds=quarantine_s)
    in_use = (Mapping.state != MappingState.DELETED) | (Mapping.deleted_at > resting)
    stmt = select(Mapping.vmid).where(Mapping.cluster == cluster, Mapping.vmid.between(low, high), in_use)
    taken = set(session.scalars(stmt)) | also
    for _ in range(RANDOM_DRAWS):
        vmid = random.randint(low, high)  # noqa: S311 (spreads ids, guards nothing)
        if vmid not in taken:
            return vmid
    for vmid in range(low, high + 1):
        if vmid not in taken:
            return vmid
    raise JobError(ErrorCode.CAPACITY, f"no VMID is free between {low} and {high}")


def reserve(  # noqa: PLR0913 (one column each)
    session: Session, *, service_id: str, cluster: str, vmid: int, name: str, kind: str = GuestKind.QEMU
) -> Mapping | None:
    """Set the VMID aside for the service; None when somebody else was faster with the id or the service."""
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
    """Take in a VM that carries the service's marker but that we have no row of (a lost database)."""
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
    """Adopt a VM for a service; None when the service has another one, or the VMID belongs to another service.

    A mapping of this very VM stays and takes the VM's name. One of another VMID whose VM is lost is deleted first.
    """
    remembered = current(session, service_id)
    if remembered is not None and (remembered.vmid, remembered.cluster) == (vmid, cluster):
        now, found = utc_now(), {"node": node, "name": name, "kind": kind, "note": "found by its marker"}
        _update(session, remembered.id, now=now, state=MappingState.ACTIVE, **found)
        return remembered
    if remembered is not None and remembered.state != MappingState.VM_LOST:
        return None
    with session.begin_nested() as both:
        if remembered is not None:
            mark_deleted(session, remembered.id, f"the VM was found on VMID {vmid}")
        mapping = insert_active(
            session, service_id=service_id, cluster=cluster, vmid=vmid, name=name, node=node, kind=kind
        )
        if mapping is None:
            both.rollback()
    return mapping


def record_node(session: Session, mapping_id: int, node: str) -> None:
    """Write down where the VM was seen; nobody trusts it: every action looks the VM up."""
    _update(session, mapping_id, now=utc_now(), node=node)


def apply_result(session: Session, mapping_id: int, vm: Dict[str, Any]) -> None:
    """Store what a playbook reported of the VM: it exists, is deleted later (`delete_at`), or is gone."""
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
    """Give a reservation up: its VMID turned out to be somebody else's. It rests like any freed id."""
    now = utc_now()
    _update(session, mapping_id, now=now, state=MappingState.DELETED, deleted_at=now, note=note)


def mark_vm_lost(session: Session, mapping_id: int, note: str) -> None:
    """Write down that the VM vanished; a later delete of the service still finds the row."""
    _update(session, mapping_id, now=utc_now(), state=MappingState.VM_LOST, note=note)


def _update(session: Session, mapping_id: int, *, now: Any, **values: Any) -> None:
    stmt = update(Mapping).where(Mapping.id == mapping_id, Mapping.state != MappingState.DELETED)
    session.execute(stmt.values(updated_at=now, **values))


def active(session: Session, cluster: str | None = None) -> Sequence[Mapping]:
    """Return every mapping whose VM exists as far as we know."""
    stmt = select(Mapping).where(Mapping.state == MappingState.ACTIVE).order_by(Mapping.vmid)
    return session.scalars(stmt if cluster is None else stmt.where(Mapping.cluster == cluster)).all()


def due_for_deletion(session: Session, cluster: str, limit: int = 100) -> Sequence[Mapping]:
    """Return the mappings pending deletion whose VM may be deleted now, the longest overdue first."""
    stmt = select(Mapping).where(Mapping.state == MappingState.PENDING_DELETION, Mapping.cluster == cluster)
    return session.scalars(stmt.where(Mapping.delete_at <= utc_now()).order_by(Mapping.delete_at).limit(limit)).all()


def listing(session: Session, *, states: Sequence[str] = (), limit: int = 1000) -> Sequence[Mapping]:
    """Return mappings, newest first; without `states` all that are not deleted."""
    stmt = select(Mapping).order_by(Mapping.id.desc()).limit(limit)
    if states:
        return session.scalars(stmt.where(Mapping.state.in_(states))).all()
    return session.scalars(stmt.where(Mapping.state != MappingState.DELETED)).all()


def find(session: Session, reference: str) -> Sequence[Mapping]:
    """Return the mappings, history included, of a VMID, a name, or a service id or its beginning."""
    if not reference:
        return []
    if reference.isascii() and reference.isdecimal() and len(reference) < 10:
        condition = Mapping.vmid == int(reference)
    else:
        condition = (Mapping.name == reference) | Mapping.service_id.startswith(reference.lower(), autoescape=True)
    return session.scalars(select(Mapping).where(condition).order_by(Mapping.id.desc()).limit(100)).all()


def count_by_state(session: Session, *, with_deleted: bool = True) -> dict[str, int]:
    """Return how many mappings there are by state."""
    states = [state for state in MappingState if with_deleted or state is not MappingState.DELETED]
    stmt = select(Mapping.state, func.count()).group_by(Mapping.state)
    if not with_deleted:
        stmt = stmt.where(Mapping.state != MappingState.DELETED)
    return {state.value: 0 for state in states} | dict(session.execute(stmt).all())
