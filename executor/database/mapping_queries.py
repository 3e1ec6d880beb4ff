"""Finds, lists and counts mappings for commands and web pages. A mapping is current if its state is not deleted.

A `Reader` is an SQLAlchemy connection or session. A row that a function returns has the attributes of the class
`Mapping`, but is not an object of the ORM.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, func, literal, select

from executor.database.core_tables import mappings, read_rows  # for queries with SQLAlchemy Core
from executor.database.literals import DELETED_LITERAL  # an SQL literal, so that SQLite uses partial indexes
from executor.database.statements import could_be_id_prefix, fits_integer_column
from executor.database.vm_names import SERVICE_ID_PART_LENGTH
from executor.model import MappingState

if TYPE_CHECKING:  # The import of `Mapping` would import the ORM, which is slow.
    from executor.database.core_tables import Reader
    from executor.database.tables.mappings import Mapping

_IS_CURRENT = mappings.c.state != DELETED_LITERAL
#: The maximum number of mappings that `find_mappings_by_vm_or_service` returns.
MAX_FOUND_MAPPINGS = 100


def current_mappings_by_service(reader: Reader, service_ids: Collection[str]) -> dict[str, Mapping]:
    """Return the current mappings of these services. The keys are the service ids."""
    stmt = select(mappings).where(mappings.c.service_id.in_(service_ids), _IS_CURRENT)
    return {row.service_id: row for row in read_rows(reader, stmt)}


def list_mappings(reader: Reader, *, states: Sequence[str] = (), limit: int = 1000) -> Sequence[Mapping]:
    """Return the mappings in these states, newest first. If `states` is empty, return the current mappings."""
    stmt = select(mappings).order_by(mappings.c.id.desc()).limit(limit)
    if states:
        return read_rows(reader, stmt.where(mappings.c.state.in_(states)))
    return read_rows(reader, stmt.where(_IS_CURRENT))


def find_mappings_by_vm_or_service(reader: Reader, reference: str) -> Sequence[Mapping]:
    """Return the mappings that `reference` names, newest first. Deleted mappings are included.

    `reference` is a VMID, a VM's name, a VM's name without its suffix (a dash and the first SERVICE_ID_PART_LENGTH
    digits of the service id), a service id, or the beginning of a service id. A number is first searched as a VMID. If
    no mapping has this VMID, the number is searched as a name and, if it has at least 8 digits, as the beginning of a
    service id. Any other text is searched as a name and as the beginning of a service id.
    """
    if not reference:
        return []
    if fits_integer_column(reference) and (matches := find_mappings_by_vmid(reader, int(reference))):
        return matches
    suffix = func.substr(mappings.c.service_id, 1, SERVICE_ID_PART_LENGTH)
    has_name = (mappings.c.name == reference) | (mappings.c.name == literal(f"{reference}-").concat(suffix))
    matches_reference = has_name
    if could_be_id_prefix(reference):  # False for a number with fewer than 8 digits
        matches_reference |= mappings.c.service_id.startswith(reference.lower(), autoescape=True)
    return read_rows(reader, _newest_mappings_query().where(matches_reference))


def find_mappings_by_vmid(reader: Reader, vmid: int) -> Sequence[Mapping]:
    """Return the mappings with this VMID, newest first. Deleted mappings are included."""
    return read_rows(reader, _newest_mappings_query().where(mappings.c.vmid == vmid))


def _newest_mappings_query() -> Select[Any]:
    return select(mappings).order_by(mappings.c.id.desc()).limit(MAX_FOUND_MAPPINGS)


def count_mappings_by_state(reader: Reader, *, should_count_deleted_mappings: bool = True) -> dict[str, int]:
    """Return the number of mappings in each state. The keys are all states, including states without a mapping.

    If `should_count_deleted_mappings` is False, the state deleted is left out.
    """
    stmt = select(mappings.c.state, func.count()).group_by(mappings.c.state)
    counts = {state.value: 0 for state in MappingState}
    if not should_count_deleted_mappings:
        stmt = stmt.where(_IS_CURRENT)
        del counts[MappingState.DELETED.value]
    return counts | dict(reader.execute(stmt).all())
