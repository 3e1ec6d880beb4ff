"""Reads rows of the agent's database for the checks of other areas. Does not create a missing database."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from executor.database.engine import open_engine, reading, sqlite_file
from executor.settings.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

T = TypeVar("T")


def read_database(settings: Settings, read: Callable[[Session], T], *, if_missing: T) -> T:
    """Return the result of `read`, or `if_missing` if there is no database yet. Raises DatabaseError."""
    file = sqlite_file(settings.smith_database_url)
    if file is not None and not file.exists():
        return if_missing
    engine = open_engine(settings.smith_database_url)
    try:
        with reading(engine) as session:
            return read(session)
    finally:
        engine.dispose()
