"""Imports the modules of all tables, so that METADATA contains every table."""

from __future__ import annotations

from sqlalchemy import MetaData

from executor.database.tables import agents, allocations, audit, jobs, mappings, moves, web_sessions
from executor.database.tables.base import Base

#: The modules that define tables.
MODULES = (agents, allocations, audit, jobs, mappings, moves, web_sessions)
#: All tables, without the indexes (`executor.database.indexes`).
METADATA: MetaData = Base.metadata
