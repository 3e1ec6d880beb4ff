"""Reads and removes notes of deleted mappings. Such a note names volumes of the deleted VM that may still exist.

`mappings.apply_result` writes these notes. No function of this module commits: the caller commits the transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from executor.database.mapping_conditions import HAS_VOLUMES_LEFT, VOLUME_SEPARATOR, VOLUMES_LEFT_PREFIX
from executor.database.tables.mappings import Mapping


def mappings_with_volumes_left(session: Session, cluster: str) -> Sequence[Mapping]:
    """Return the deleted mappings of a cluster whose note names volumes that existed after the deletion of the VM."""
    stmt = select(Mapping).where(HAS_VOLUMES_LEFT, Mapping.cluster == cluster)
    return session.scalars(stmt.order_by(Mapping.id)).all()


def volume_ids_in_note(mapping: Mapping) -> list[str]:
    """Return the ids of the volumes in the note of a mapping for which `has_volumes_left` is true."""
    return (mapping.note or "").removeprefix(VOLUMES_LEFT_PREFIX).split(VOLUME_SEPARATOR)


def has_volumes_left(mapping: Mapping) -> bool:
    """Return whether the note of a mapping names volumes of its deleted VM that may still exist."""
    return (mapping.note or "").startswith(VOLUMES_LEFT_PREFIX)


def remove_volumes_note(session: Session, mapping_id: int) -> None:
    """Remove the note of a mapping, because the volumes that it names do not exist any more."""
    stmt = update(Mapping).where(Mapping.id == mapping_id, HAS_VOLUMES_LEFT)
    session.execute(stmt.values(note=None))
