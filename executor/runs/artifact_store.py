"""Moves the artifacts of ended runs from the run folder to the folder `artifacts_dir`, and retries failed moves.

The artifacts of a run are the files with its output, events, exit code and status (`output.py`). The run folder is the
folder in memory in which all runs of the agent execute (`run_folder.py`).
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from executor.log import get_logger
from executor.model import RunStatus
from executor.runs.private_folder import is_folder_of_this_user, is_valid_ident, write_text

log = get_logger(__name__)

#: Subfolder of the run folder. It contains the artifacts that could not be moved: one folder per run.
UNMOVED_FOLDER = ".kept"
#: Minimum age at which unmoved artifacts are moved or deleted. Younger artifacts stay where they are, because the
#: agent may still read them.
MIN_UNMOVED_AGE_S = 60.0
#: Maximum size of all unmoved artifacts, which use memory. Above this size, the oldest artifacts are deleted.
MAX_UNMOVED_BYTES = 8 * 1024 * 1024


class ArtifactStore:
    """Stores the artifacts of ended runs in `artifacts_dir`, a subfolder of the data folder (SMITH_DATA_DIR)."""

    def __init__(self, artifacts_dir: Path, get_run_folder: Callable[[], Path]) -> None:
        self._artifacts_dir = artifacts_dir
        self._get_run_folder = get_run_folder
        self._retry_lock = threading.Lock()

    def store(self, source_folder: Path, ident: str) -> Path:
        """Move the artifacts of a run from `source_folder` to `artifacts_dir`. Return their new folder.

        When `artifacts_dir` is full or not writable, the artifacts stay in the run folder, so that the agent can read
        the result. `retry_artifact_moves` tries to move them again.
        """
        try:
            stored_folder = self._move(source_folder, ident)
        except (OSError, shutil.Error) as error:
            log.error("artifacts_not_stored", run_ident=ident, reason=_error_text(error))
            unmoved_folder = self._get_run_folder() / UNMOVED_FOLDER
            unmoved_folder.mkdir(mode=0o700, exist_ok=True)
            stored_folder = source_folder.rename(unmoved_folder / ident)
        self.retry_artifact_moves()
        return stored_folder

    def retry_artifact_moves(self, *, min_age_s: float = MIN_UNMOVED_AGE_S, run_folder: Path | None = None) -> None:
        """Move artifacts that an earlier `store` could not move.

        If the artifacts that still cannot be moved use more than MAX_UNMOVED_BYTES, delete the oldest ones.

        `run_folder` is the run folder of an earlier agent process. The default is the run folder of this agent process.
        """
        unmoved_folder = (run_folder or self._get_run_folder()) / UNMOVED_FOLDER
        if not is_folder_of_this_user(unmoved_folder) or not self._retry_lock.acquire(blocking=False):
            return
        try:
            for folder in _folders_oldest_first(unmoved_folder, min_age_s):
                try:
                    self._move(folder, folder.name)
                except (OSError, shutil.Error):
                    break  # `store` has logged the reason
            _delete_oldest_above_limit(unmoved_folder, min_age_s)
            with contextlib.suppress(OSError):  # raised if the folder is not empty
                unmoved_folder.rmdir()
        finally:
            self._retry_lock.release()

    def _move(self, source_folder: Path, ident: str) -> Path:
        """Move a run's artifacts; return their new folder. Raises OSError or shutil.Error if nothing was moved."""
        target, partial_copy = self._artifacts_dir / ident, self._artifacts_dir / f".{ident}.part"
        self._artifacts_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in (partial_copy, target):
            shutil.rmtree(path, ignore_errors=True)
        try:
            shutil.copytree(source_folder, partial_copy)
            # `status` is missing if an earlier agent process was killed during the run, or if the run folder was full.
            if not (partial_copy / "status").exists():
                write_text(partial_copy / "status", RunStatus.FAILED)
            partial_copy.rename(target)
        except BaseException:
            shutil.rmtree(partial_copy, ignore_errors=True)  # an incomplete copy would use the space of a full disk
            raise
        shutil.rmtree(source_folder, ignore_errors=True)
        return target


def _folders_oldest_first(unmoved_folder: Path, min_age_s: float) -> list[Path]:
    """Return the folders of runs that are at least `min_age_s` old, the oldest first."""
    max_mtime = time.time() - min_age_s
    folders = [path for path in unmoved_folder.iterdir() if is_valid_ident(path.name) and is_folder_of_this_user(path)]
    mtimes = {folder: folder.stat().st_mtime for folder in folders}
    return sorted((folder for folder in folders if mtimes[folder] <= max_mtime), key=lambda folder: mtimes[folder])


def _delete_oldest_above_limit(unmoved_folder: Path, min_age_s: float) -> None:
    folders = _folders_oldest_first(unmoved_folder, min_age_s)
    bytes_by_folder = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}
    total_bytes, deleted_count = sum(bytes_by_folder.values()), 0
    for folder in folders:
        if total_bytes <= MAX_UNMOVED_BYTES:
            break
        shutil.rmtree(folder, ignore_errors=True)
        total_bytes -= bytes_by_folder[folder]
        deleted_count += 1
    if deleted_count:
        log.warning("unmoved_artifacts_deleted", count=deleted_count)


def _error_text(error: OSError | shutil.Error) -> str:
    """Return the text of the error. If `copytree` could not copy several files, return the text for the first file."""
    failed_copies = error.args[0] if error.args else ""
    if isinstance(failed_copies, list) and failed_copies:
        _source, _target, text = failed_copies[0]
        return str(text)
    return str(error)
