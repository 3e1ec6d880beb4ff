"""Finds, lists and counts mappings for commands and pages. A mapping is current if its state is not deleted."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Select, func, literal, select
from sqlalchemy.orm import Session

from executor.database.mapping_conditions import IS_CURRENT
from executor.database.mappings import SERVICE_ID_PART_LENGTH
from executor.database.statements import is_integer_text, may_begin_id
from executor.database.tables.mappings import Mapping
from executor.model import MappingState

#: The maximum number of mappings that `find_mappings_by_reference` returns.
MAX_FOUND_MAPPINGS = 100


def current_mappings_of_services(session: Session, service_ids: Collection[str]) -> dict[str, Mapping]:
    """Return the current mappings of these services. The keys are the service ids."""
    stmt = select(Mapping).where(Mapping.service_id.in_(service_ids), IS_CURRENT)
    return {row.service_id: row for row in session.scalars(stmt)}


def list_mappings(session: Session, *, states: Sequence[str] = (), limit: int = 1000) -> Sequence[Mapping]:
    """Return the mappings in these states, newest first. If `states` is empty, return the current mappings."""
    stmt = select(Mapping).order_by(Mapping.id.desc()).limit(limit)
    if states:
        return session.scalars(stmt.where(Mapping.state.in_(states))).all()
    return session.scalars(stmt.where(IS_CURRENT)).all()


def find_mappings_by_reference(session: Session, reference: str) -> Sequence[Mapping]:
    """Return the mappings that `reference` names, newest first. Deleted mappings are included.

    `reference` is a VMID, a VM's name with or without its suffix (see `vm_names.vm_name`), a service id, or the
    beginning of a service id. A number that is not the VMID of a mapping is searched as a name and, if it has enough
    digits (see `may_begin_id`), as the beginning of a service id.
    """
    if not reference:
        return []
    if is_integer_text(reference) and (matches := find_mappings_by_vmid(session, int(reference))):
        return matches
    suffix = func.substr(Mapping.service_id, 1, SERVICE_ID_PART_LENGTH)
    has_name = (Mapping.name == reference) | (Mapping.name == literal(f"{reference}-").concat(suffix))
    matches_reference = has_name
    if may_begin_id(reference):
        matches_reference |= Mapping.service_id.startswith(reference.lower(), autoescape=True)
    return session.scalars(_newest_mappings_query().where(matches_reference)).all()


def find_mappings_by_vmid(session: Session, vmid: int) -> Sequence[Mapping]:
    """Return the mappings with this VMID, newest first. Deleted mappings are included."""
    return session.scalars(_newest_mappings_query().where(Mapping.vmid == vmid)).all()


def _newest_mappings_query() -> Select[Mapping]:
    return select(Mapping).order_by(Mapping.id.desc()).limit(MAX_FOUND_MAPPINGS)


def count_mappings_by_state(session: Session, *, should_count_deleted: bool = True) -> dict[str, int]:
    """Return the number of mappings in each state. The keys are all states, including states without a mapping.

    If `should_count_deleted` is False, the state deleted is left out.
    """
    stmt = select(Mapping.state, func.count()).group_by(Mapping.state)
    counts = {state.value: 0 for state in MappingState}
    if not should_count_deleted:
        stmt = stmt.where(IS_CURRENT)
        del counts[MappingState.DELETED.value]
    return counts | dict(session.execute(stmt).all())
