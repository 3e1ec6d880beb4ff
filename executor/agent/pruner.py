"""The critical job PruneCompletedJobs: deletes old job rows, their runs, and artifacts by age and by total size."""

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

#: Rows per transaction, and the wait between two: other writers never wait longer than one transaction.
BATCH_ROWS = 500
BATCH_WAIT_S = 0.05
BYTES_PER_MIB = 1024 * 1024
#: A folder younger than this may belong to a run that is not finished.
MIN_AGE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Pruner:
    """Keeps database and disk bounded. A job whose report FulcrumCore has not accepted is never deleted."""

    engine: Engine
    settings: Settings

    @property
    def artifacts_dir(self) -> Path:
        """The folder of the artifacts: one folder per run."""
        return self.settings.smith_data_dir / "artifacts"

    def prune(self) -> None:
        """Delete jobs and artifacts past the retention time, then the oldest artifacts over the size limit."""
        rows = self._prune_rows()
        aged = self._prune_aged_folders()
        capped = self._prune_to_cap()
        if rows or aged or capped:
            log.info("pruned", jobs=rows, artifacts_by_age=aged, artifacts_by_size=capped)

    def _prune_rows(self) -> int:
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

    def _prune_aged_folders(self) -> int:
        """Delete folders without rows: after the loss of a database they would stay for ever."""
        oldest = time.time() - self.settings.smith_job_retention_s
        old = [folder for written_at, _size, folder in self._folders() if written_at < oldest]
        for folder in old:
            shutil.rmtree(folder, ignore_errors=True)
        return len(old)

    def _prune_to_cap(self) -> int:
        cap = self.settings.smith_artifacts_max_mib * BYTES_PER_MIB
        if not cap:
            return 0  # 0: no limit
        folders = sorted(self._folders())
        total = sum(size for _written_at, size, _folder in folders)
        deleted = 0
        for written_at, size, folder in folders:
            if total <= cap or written_at > time.time() - MIN_AGE_S:
                break
            shutil.rmtree(folder, ignore_errors=True)
            total -= size
            deleted += 1
        return deleted

    def _folders(self) -> Iterator[tuple[float, int, Path]]:
        """Yield modification time, size in bytes and path of every run's folder."""
        if not self.artifacts_dir.is_dir():
            return
        for folder in self.artifacts_dir.iterdir():
            try:
                stats = [entry.stat() for entry in folder.iterdir()]
                yield folder.stat().st_mtime, sum(stat.st_size for stat in stats), folder
            except OSError:
                continue  # it was deleted meanwhile, or is no folder
