"""Reads the id of an installation from the agent's data folder, or creates it at the first start.

An installation is a data folder on one host, with the agent processes that use it one after the other. The row of each
agent process in the table `nodes` contains the installation's id. The data folder is locked, so at most one process
uses it at a time. When a new process starts, the other processes with the same host and installation id have ended. The
new process reaps the jobs of the ended processes.

Another agent may use a copy of the data folder. So the file with the id also contains its own device and inode numbers.
A copied file has other device and inode numbers than the numbers that it contains. So the agent replaces a copied file
by a file with a new id.
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

from executor.log import get_logger

log = get_logger(__name__)

#: The file with the id, which has 32 hex digits. The device and inode numbers of the file follow on the same line.
INSTALLATION_FILE = "installation-id"
_CONTENT_PATTERN = re.compile(r"([0-9a-f]{32}) ([0-9]+) ([0-9]+)\n")
_MAX_READ_BYTES = 256


def installation_id(data_dir: Path) -> str | None:
    """Return the id of the installation. Return None if the file cannot be read or written.

    A file that is a copy or has invalid content is replaced. Call this function only while the data folder is locked.
    """
    file = data_dir / INSTALLATION_FILE
    try:
        return _read_id(file) or _create_id(file)
    except OSError as error:
        # Without an id, the next process cannot reap the jobs of this process at its start, only after their leases
        # have expired.
        log.warning("installation_id_not_usable", file=str(file), reason=error.strerror)
        return None


def _read_id(file: Path) -> str:
    """Return the id in the file; '' if the file is missing, invalid or a copy. A symbolic link is not followed."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    with open(fd, "rb") as open_file:
        status = os.fstat(fd)
        content = _CONTENT_PATTERN.fullmatch(open_file.read(_MAX_READ_BYTES).decode("ascii", errors="replace"))
    if content is None or (int(content[2]), int(content[3])) != (status.st_dev, status.st_ino):
        return ""
    return content[1]


def _create_id(file: Path) -> str:
    """Write a new random id to the file; return the id. After a crash, the file is complete or does not exist."""
    new_id = uuid.uuid4().hex
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as open_file:
        status = os.fstat(fd)
        open_file.write(f"{new_id} {status.st_dev} {status.st_ino}\n".encode("ascii"))
        open_file.flush()
        os.fsync(fd)
    draft.replace(file)
    return new_id
