"""Reads rows of the agent's database for the checks that concern FulcrumCore and Proxmox.

Does not create the SQLite database if it is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from executor.database.engine import open_engine, reading, sqlite_file
from executor.settings.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

T = TypeVar("T")


def read_database(settings: Settings, read_rows: Callable[[Session], T], *, if_missing: T) -> T:
    """Return the result of `read_rows`, or `if_missing` if the file of a SQLite database does not exist yet.

    `read_rows` is called in a transaction that only reads. Raises DatabaseError.
    """
    file = sqlite_file(settings.smith_database_url)
    if file is not None and not file.exists():
        return if_missing
    engine = open_engine(settings.smith_database_url)
    try:
        with reading(engine) as session:
            return read_rows(session)
    finally:
        engine.dispose()
