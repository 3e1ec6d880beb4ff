"""Reads rows of the agent's database for the checks that concern FulcrumCore and Proxmox.

Does not create the SQLite database if it is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from executor.database.engine import open_engine, read_only_session, sqlite_file
from executor.settings.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

T = TypeVar("T")


def read_database(settings: Settings, read_rows: Callable[[Session], T], *, if_no_database_file: T) -> T:
    """Return the result of `read_rows`, or `if_no_database_file` if the file of a SQLite database does not exist yet.

    `read_rows` is called in a transaction that only reads. Raises DatabaseError.
    """
    file = sqlite_file(settings.smith_database_url)
    if file is not None and not file.exists():
        return if_no_database_file
    engine = open_engine(settings.smith_database_url)
    try:
        with read_only_session(engine) as session:
            return read_rows(session)
    finally:
        engine.dispose()
