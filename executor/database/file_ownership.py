"""Gives new files in the database's folder to the owner of the folder, and reports files that this process cannot use.

An operator may call a command as root, for example `smith db upgrade`. The agent, which runs as another user, must
still be able to use each file that such a command creates.
"""

from __future__ import annotations

import os
import pwd
import shlex
from pathlib import Path

#: The suffixes of the files beside a database: SQLite's write-ahead log, the index of this log, and the file that an
#: agent locks while it uses the database.
COMPANION_SUFFIXES = ("-wal", "-shm", ".lock")


def open_or_create_file(file: Path, flags: int) -> int:
    """Open the file and create it if it does not exist; return the descriptor. Raises OSError.

    If root opens a file that is empty, as each new file is, the file gets the owner of its folder. A symbolic link is
    refused with OSError, because otherwise the owner of the folder could make root open any other file.
    """
    descriptor = os.open(file, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.geteuid() == 0 and os.fstat(descriptor).st_size == 0:
            owner = file.parent.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def change_owner_if_run_as_root(owner: os.stat_result, *files: Path) -> None:
    """If this process is root, give each existing file the user and the group of `owner`. Do not follow symbolic links.

    `owner` is the stat result of a file or a folder.
    """
    if os.geteuid() != 0:
        return
    for file in files:
        if os.path.lexists(file):
            os.chown(file, owner.st_uid, owner.st_gid, follow_symlinks=False)


def why_database_unusable(database: Path) -> str:
    """Return which file of the database this process cannot use, and the remedy; '' if it can use all files."""
    for file in (database, *(Path(f"{database}{suffix}") for suffix in COMPANION_SUFFIXES)):
        if file.exists() and not os.access(file, os.R_OK | os.W_OK):
            if os.statvfs(file).f_flag & os.ST_RDONLY:
                return f"{file} is on a disk that is mounted read-only: mount it writable"
            uid, gid = os.getuid(), os.getgid()
            if file.stat().st_uid == uid:
                return f"{file} is not readable and writable for its owner: chmod 600 {shlex.quote(str(file))}"
            owner, command = _user_name(file.stat().st_uid), shlex.join(["chown", f"{uid}:{gid}", str(file)])
            return f"{file} belongs to {owner}, not to {_user_name(uid)}; as root: {command}"
    return ""


def _user_name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
