"""Imports the modules of all tables, so that METADATA contains every table."""

from __future__ import annotations

from sqlalchemy import MetaData

from executor.database.tables import (  # noqa: F401 (each module adds its tables to the metadata)
    agents,
    allocations,
    audit,
    jobs,
    mappings,
    moves,
    web_sessions,
)
from executor.database.tables.base import Base

#: All tables, without the indexes (`executor.database.indexes`).
METADATA: MetaData = Base.metadata
