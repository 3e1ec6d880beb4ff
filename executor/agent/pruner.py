"""Runs the critical job PruneCompletedJobs: deletes old jobs with their runs, and artifacts by age and total size."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from executor.database import job_queue, nodes
from executor.database.engine import transaction
from executor.database.tables import utc_now
from executor.log import get_logger
from executor.settings.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Maximum number of jobs deleted in one transaction, and the wait between two transactions, so that other writers
#: never wait long.
BATCH_ROWS = 500
BATCH_WAIT_S = 0.05
BYTES_PER_MIB = 1024 * 1024
#: Artifacts younger than this are kept, because their run may not be finished.
MIN_AGE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Pruner:
    """Limits the size of the database and the artifacts. Keeps every job whose report FulcrumCore has not accepted."""

    engine: Engine
    settings: Settings

    @property
    def artifacts_dir(self) -> Path:
        """The folder that contains one folder of artifacts per run."""
        return self.settings.smith_data_dir / "artifacts"

    def prune(self) -> None:
        """Delete jobs and artifacts older than the retention time, then the oldest artifacts above the size limit."""
        rows = self._prune_rows()
        by_age = self._prune_folders_by_age()
        by_size = self._prune_folders_by_size()
        if rows or by_age or by_size:
            log.info("pruned", jobs=rows, artifacts_by_age=by_age, artifacts_by_size=by_size)

    def _prune_rows(self) -> int:
        """Delete old jobs with their runs and artifacts; return how many jobs were deleted."""
        before = utc_now() - timedelta(seconds=self.settings.smith_job_retention_s)
        deleted = 0
        while True:
            with transaction(self.engine) as session:
                count, idents = job_queue.prune(session, ended_before=before, limit=BATCH_ROWS)
                nodes.prune(session, seen_before=before)
            for ident in idents:
                shutil.rmtree(self.artifacts_dir / ident, ignore_errors=True)
            deleted += count
            if count < BATCH_ROWS:
                return deleted
            time.sleep(BATCH_WAIT_S)

    def _prune_folders_by_age(self) -> int:
        """Delete old artifacts even if no row names them: after the loss of a database they would stay for ever."""
        oldest = time.time() - self.settings.smith_job_retention_s
        old = [folder for written_at, _size, folder in self._folders() if written_at < oldest]
        for folder in old:
            shutil.rmtree(folder, ignore_errors=True)
        return len(old)

    def _prune_folders_by_size(self) -> int:
        """Delete the oldest artifacts until all together have at most SMITH_ARTIFACTS_MAX_MIB."""
        max_bytes = self.settings.smith_artifacts_max_mib * BYTES_PER_MIB
        if not max_bytes:
            return 0  # no limit is set
        folders = sorted(self._folders())
        total = sum(size for _written_at, size, _folder in folders)
        deleted = 0
        for written_at, size, folder in folders:
            if total <= max_bytes or written_at > time.time() - MIN_AGE_S:
                break
            shutil.rmtree(folder, ignore_errors=True)
            total -= size
            deleted += 1
        return deleted

    def _folders(self) -> Iterator[tuple[float, int, Path]]:
        """Yield modification time, size in bytes and path of each run's folder of artifacts."""
        if not self.artifacts_dir.is_dir():
            return
        for folder in self.artifacts_dir.iterdir():
            try:
                stats = [entry.stat() for entry in folder.iterdir()]
                yield folder.stat().st_mtime, sum(stat.st_size for stat in stats), folder
            except OSError:
                continue  # the folder was deleted meanwhile, or the path is not a folder
