"""Locks a file beside the SQLite database, so that only one agent at a time uses the database."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from executor.database import file_ownership
from executor.database.engine import sqlite_file
from executor.errors import DatabaseError

#: Maximum number of characters that an error message quotes from the lock file. The lock file contains the process id
#: and the host of the process that has the lock.
MAX_HOLDER_CHARS = 200


@contextlib.contextmanager
def exclusive_database(url: str) -> Iterator[None]:
    """Lock the file `<database>.lock` while the block runs. Do nothing for PostgreSQL, which several agents may use.

    Raises DatabaseError when another process has the lock; the text names that process. The kernel releases a process's
    lock when the process ends, even after a crash.
    """
    database_path = sqlite_file(url)
    if database_path is None:  # the URL names a PostgreSQL database
        yield
        return
    lock_path = Path(f"{database_path}.lock")
    lock_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open_lock_file(lock_path) as lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock_file.seek(0)
            holder = lock_file.read(MAX_HOLDER_CHARS).strip() or "another process"
            text = f"the database {database_path} is in use by {holder}: only one agent may use an SQLite database"
            raise DatabaseError(text) from None
        write_lock_holder(lock_file)
        yield


def open_lock_file(lock_path: Path) -> TextIO:
    """Open the lock file for appending and reading. Raises DatabaseError.

    A missing file is created. A file that root creates belongs to the owner of the file's folder.
    """
    try:
        return os.fdopen(file_ownership.open_or_create_file(lock_path, os.O_RDWR | os.O_APPEND), "a+", encoding="utf-8")
    except OSError as error:
        # `why_database_unusable` returns '' unless the owner, the permissions or the mount of the file are wrong.
        reason = file_ownership.why_database_unusable(lock_path) or f"{lock_path}: {error.strerror}"
        raise DatabaseError(f"cannot lock the database: {reason}") from error


def write_lock_holder(lock_file: TextIO) -> None:
    """Replace the content of the lock file by the process id and the host of this process."""
    lock_file.truncate(0)
    lock_file.write(f"pid {os.getpid()} on {socket.gethostname()}")
    lock_file.flush()
