"""Locks the SQLite file, so that only one agent at a time uses it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from executor.database.engine import sqlite_file
from executor.errors import DatabaseError


@contextlib.contextmanager
def exclusive_database(url: str) -> Iterator[None]:
    """Lock the SQLite file for the length of the block. Do nothing for PostgreSQL, which several agents may share.

    Raises DatabaseError when another process has the lock; the text names that process. The kernel releases the lock
    when the process that has it ends.
    """
    database = sqlite_file(url)
    if database is None:
        yield
        return
    file = Path(f"{database}.lock")
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read(200).strip() or "another process"
            raise DatabaseError(f"the database {database} is in use by {holder}: only one agent may use it") from None
        handle.truncate(0)
        handle.write(f"pid {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield
