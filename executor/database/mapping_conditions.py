"""Defines SQL conditions that select mappings, and the format of a note that names the volumes of a deleted VM."""

from __future__ import annotations

from sqlalchemy import func, literal_column

from executor.database.literals import DELETED_LITERAL
from executor.database.tables.mappings import Mapping

#: How the note of a deleted mapping begins if volumes of the deleted VM still exist. The ids of these volumes follow.
VOLUMES_LEFT_PREFIX = "VOLUMES_LEFT: "
VOLUME_SEPARATOR = ", "

# These conditions contain literals, so that SQLite uses the partial indexes.
IS_CURRENT = Mapping.state != DELETED_LITERAL
IS_DELETED = Mapping.state == DELETED_LITERAL
NOTE_NAMES_VOLUMES = func.substr(
    Mapping.note, literal_column("1"), literal_column(str(len(VOLUMES_LEFT_PREFIX)))
) == literal_column(f"'{VOLUMES_LEFT_PREFIX}'")
HAS_VOLUMES_LEFT = IS_DELETED & NOTE_NAMES_VOLUMES
