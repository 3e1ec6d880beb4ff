"""Chooses, checks and locks the run folder, which contains the private folders of one agent's runs.

The run folder is in a folder to which other users may have write access, such as /dev/shm. So another user may have
made a link, a file or a folder with the name of the run folder. The run folder is opened without following a link, and
its owner is checked with the open descriptor. If the run folder cannot be used, a folder with another name is used.

The agent writes the paths of its current and earlier run folders to the file RECORD_FILE in its data folder. With
this file, a new agent process finds the orphan processes of earlier runs, and ends them, even if SMITH_RUN_DIR was
changed.

The run folder also contains the file RUN_UNTIL_FILE (`run_until_file.py`) with the deadline at which all runs of the
agent process must end. The deadline is before the expiry of the agent process's leases. If the runs may continue after
the leases have expired, the file contains NO_LIMIT instead of a deadline.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from executor.database.engine import file_system_of
from executor.errors import SettingsError
from executor.log import get_logger
from executor.runs.run_folder_record import RECORD_FILE, current_and_earlier_values_of_run_dir
from executor.runs.run_until_file import RUN_UNTIL_FILE, RunUntilFile
from executor.shared.run_until import NO_LIMIT

log = get_logger(__name__)

#: The types of file systems that are in memory.
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")
#: The highest number that is appended to the name of the configured folder. If the folder `run` is not usable, the
#: folders `run-2` to `run-9` are tried.
MAX_NAME_SUFFIX = 9
#: Maximum wait for a lock. An agent process that was just killed keeps its locks for a moment.
LOCK_WAIT_S = 2.0
LOCK_RETRY_S = 0.05
#: Maximum number of bytes that are read from RECORD_FILE, to compare them with the new content.
MAX_RECORD_FILE_BYTES = 65_536
#: Errors after which another attempt fails, too, until an operator acts.
_PERMANENT_ERRORS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


class RunFolderNotUsable(Exception):
    """A folder cannot be the run folder. The text is the reason."""


class RunFolder:
    """The run folder of one agent process or command. It is opened and locked at the first access to `path`.

    `configured_path` is the value of SMITH_RUN_DIR. `data_dir` is the agent's data folder, to which RECORD_FILE is
    written. If a command, not an agent process, uses the run folder, `data_dir` is None and no RECORD_FILE is written.
    The locks of the run folder and of RECORD_FILE end when this object is deleted, or when the process ends.
    """

    def __init__(self, configured_path: Path, data_dir: Path | None) -> None:
        self._configured_path = configured_path.parent.resolve() / configured_path.name
        self._record_file = data_dir / RECORD_FILE if data_dir else None
        self._record_fd: int | None = None
        self._earlier_run_folders: list[Path] = []
        self._path: Path | None = None
        self._run_until_file: RunUntilFile | None = None
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        """The path of the locked run folder. Raises SettingsError when no folder can be used."""
        with self._lock:
            if self._path is None:
                self._earlier_run_folders = self._lock_and_read_record_file()
                self._path = self._choose_and_record()
            return self._path

    @property
    def run_until_file(self) -> RunUntilFile:
        """The file in the run folder with the deadline at which all runs of this agent process must end."""
        path = self.path
        with self._lock:
            if self._run_until_file is None:
                self._run_until_file = RunUntilFile(path / RUN_UNTIL_FILE)
                # Replace the deadline of an earlier agent process. NO_LIMIT means that there is no deadline.
                self._run_until_file.set_deadline(NO_LIMIT)
            return self._run_until_file

    def _choose_and_record(self) -> Path:
        """Choose and lock a run folder, and write its path to RECORD_FILE. Return the path."""
        try:
            path = self._choose_and_lock()
            self._write_record_file(path)
        except BaseException:
            if self._record_fd is not None:
                os.close(self._record_fd)
            raise
        if self._record_fd is not None:
            weakref.finalize(self, os.close, self._record_fd)
        return path

    def lock_earlier_run_folders(self) -> Iterator[Path]:
        """Yield the run folders of earlier agent processes, except the folder that this agent process uses.

        When the caller asks for the next folder, RUN_UNTIL_FILE in the yielded folder is deleted, and the folder is
        removed if it is then empty. A folder that another agent uses now, or that no longer belongs to the user of this
        process, is skipped.
        """
        current_path = self.path
        for path in [path for path in self._earlier_run_folders if path != current_path]:
            try:
                fd = open_and_lock(path)
            except (RunFolderNotUsable, FileNotFoundError):
                self._earlier_run_folders.remove(path)
                continue
            try:
                yield path
                with contextlib.suppress(OSError):  # raised if the folder is not empty
                    (path / RUN_UNTIL_FILE).unlink(missing_ok=True)
                    path.rmdir()
            finally:
                os.close(fd)
            if not path.exists():
                self._earlier_run_folders.remove(path)
        self._write_record_file(current_path)

    def _lock_and_read_record_file(self) -> list[Path]:
        """Lock RECORD_FILE and return the run folders in it. Raises SettingsError when another agent has the lock."""
        if self._record_file is None:
            return []
        self._record_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self._record_file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if not _lock_descriptor(fd):
            os.close(fd)
            data_dir = self._record_file.parent
            raise SettingsError(
                f"SMITH_DATA_DIR {data_dir} is in use by another agent: set SMITH_DATA_DIR to another folder"
            )
        self._record_fd = fd
        # Returns the paths of the folders that were used, for example `run-2` if the configured `run` was not usable.
        return current_and_earlier_values_of_run_dir(self._record_file.parent)

    def _write_record_file(self, current_path: Path) -> None:
        if self._record_fd is None:
            return
        paths = dict.fromkeys([current_path, *self._earlier_run_folders])
        content = b"".join(os.fsencode(path) + b"\n" for path in paths)
        # Unchanged content is not written again, because the write could fail on a full disk.
        if os.pread(self._record_fd, MAX_RECORD_FILE_BYTES, 0) != content:
            os.pwrite(self._record_fd, content, 0)
            os.truncate(self._record_fd, len(content))

    def _choose_and_lock(self) -> Path:
        """Make and lock the first folder that can be used. Return its path. Raises SettingsError if there is none."""
        first_reason = ""
        for path in self._candidate_paths():
            try:
                self._make_and_lock(path)
            except RunFolderNotUsable as error:
                first_reason = first_reason or str(error)
                continue
            if path != self._configured_path:
                log.warning(
                    "run_folder_not_usable", folder=str(self._configured_path), reason=first_reason, used=str(path)
                )
            if (file_system := file_system_of(path)) not in MEMORY_FILE_SYSTEMS:
                log.warning("run_folder_on_disk", folder=str(path), file_system=file_system)
            return path
        raise SettingsError(
            f"SMITH_RUN_DIR {self._configured_path} cannot be used: {first_reason}. "
            "Set SMITH_RUN_DIR to a folder in memory that only the agent's user can read"
        )

    def _make_and_lock(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
        except OSError as error:
            if error.errno in _PERMANENT_ERRORS:
                raise RunFolderNotUsable(f"{error.strerror}") from error
            raise
        fd = open_and_lock(path)
        weakref.finalize(self, os.close, fd)

    def _candidate_paths(self) -> Iterator[Path]:
        """Yield the configured path and, if its parent folder is in memory, other paths in the parent folder."""
        yield self._configured_path
        if file_system_of(self._configured_path.parent) in MEMORY_FILE_SYSTEMS:
            for number in range(2, MAX_NAME_SUFFIX + 1):
                yield self._configured_path.with_name(f"{self._configured_path.name}-{number}")


def open_and_lock(path: Path) -> int:
    """Open and lock a folder that belongs to the user of this process. Restrict access to this user.

    Return the descriptor. A folder of another user is not changed. Raises RunFolderNotUsable, or FileNotFoundError when
    the path does not exist.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _PERMANENT_ERRORS:
            raise RunFolderNotUsable(_why_not_openable(path)) from error
        raise
    try:
        _check_and_lock(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def why_run_folder_unusable(path: Path) -> str:
    """Return why the path cannot be a run folder; '' if it can, or does not exist. The lock is not checked."""
    try:
        status = path.lstat()
    except OSError:
        return ""
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
        return ""
    return _why_not_openable(path)


def _check_and_lock(fd: int, path: Path) -> None:
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        raise RunFolderNotUsable("it belongs to another user")
    if status.st_mode & 0o022 and os.listdir(fd):
        raise RunFolderNotUsable("it is not empty, and other users can write to it")
    if not _lock_descriptor(fd):
        raise RunFolderNotUsable("another agent uses it")
    if status.st_mode & 0o077:
        os.fchmod(fd, 0o700)
    if not os.path.samestat(status, path.lstat()):
        raise RunFolderNotUsable("it was replaced while it was opened")


def _lock_descriptor(fd: int) -> bool:
    """Lock the open file. Return False when another process has the lock and keeps it for LOCK_WAIT_S."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOCK_RETRY_S)
        else:
            return True


def _why_not_openable(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "it is a link"
    return "it belongs to another user" if stat.S_ISDIR(mode) else "it is not a folder"
