"""Runs the critical job (periodic task) PruneCompletedJobs: deletes old jobs and runs, and limits the artifacts' size.

The artifacts of a run are the files that ansible-runner has written during the run, in one folder per run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from executor.database import job_queue, manual_runs, mappings, nodes, secret_references
from executor.database.engine import transaction
from executor.database.times import utc_now
from executor.log import get_logger
from executor.settings.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

log = get_logger(__name__)

#: Maximum number of jobs, or of rows of another table, that one transaction deletes. So other writers wait for the
#: database only a short time.
BATCH_SIZE = 500
#: Wait between two such transactions. During this wait, other writers can write.
BATCH_WAIT_S = 0.05
BYTES_PER_MIB = 1024 * 1024
#: Minimum age of artifacts that are deleted to limit the total size. The agent may still read the result of a run
#: from younger artifacts.
MIN_AGE_FOR_SIZE_LIMIT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Pruner:
    """Deletes old rows of the database and old artifacts. Keeps every job whose result must still be reported."""

    engine: Engine
    settings: Settings
    #: A run writes its artifacts into the run folder (SMITH_RUN_DIR). After the run, they are moved to the data folder.
    #: This function retries the moves that have failed, for example for lack of space.
    retry_artifact_moves: Callable[[], object] = lambda: None

    @property
    def artifacts_dir(self) -> Path:
        """The folder that contains one folder of artifacts per run."""
        return self.settings.smith_data_dir / "artifacts"

    def prune(self) -> None:
        """Delete old rows, old artifacts, and the oldest artifacts above the size limit.

        The deleted rows are old jobs, old deleted mappings, unused vault references, and old runs that operators
        started. A deleted mapping keeps its row, in the state deleted, until this method deletes the row. A vault
        reference is the text by which a job names a secret in FulcrumCore's vault.

        At the end, call `retry_artifact_moves`, because there may be enough space now.
        """
        deleted_job_count = self._delete_old_jobs()
        deleted_mapping_count = self._delete_rows_of_deleted_mappings()
        self._delete_unused_secret_references()
        self._delete_old_manual_runs()
        self._delete_artifacts_and_log(deleted_job_count, deleted_mapping_count)

    def prune_artifacts_of_this_machine(self) -> None:
        """Delete old artifacts of this machine. Called instead of `prune` if another process prunes the database."""
        self._delete_artifacts_and_log(deleted_job_count=0, deleted_mapping_count=0)

    def _delete_artifacts_and_log(self, deleted_job_count: int, deleted_mapping_count: int) -> None:
        """Delete old artifacts, and the oldest artifacts above the size limit; log the counts unless all are 0."""
        old_folder_count = self._delete_old_artifacts()
        folder_count_over_limit = self._limit_artifacts_size()
        self.retry_artifact_moves()
        if deleted_job_count or deleted_mapping_count or old_folder_count or folder_count_over_limit:
            log.info(
                "pruned",
                jobs=deleted_job_count,
                mappings=deleted_mapping_count,
                old_artifacts=old_folder_count,
                artifacts_over_limit=folder_count_over_limit,
            )

    def _delete_old_jobs(self) -> int:
        """Delete old jobs with their runs and artifacts; return how many jobs were deleted.

        This function also deletes the rows of agent processes that last ran more than SMITH_JOB_RETENTION_S ago.
        """
        oldest_kept_time = utc_now() - timedelta(seconds=self.settings.smith_job_retention_s)
        total_count = 0
        while True:
            with transaction(self.engine) as session:
                count, run_idents = job_queue.prune(session, ended_before=oldest_kept_time, limit=BATCH_SIZE)
                # The rows of the table `nodes` are agent processes, not Proxmox nodes.
                nodes.prune(session, seen_before=oldest_kept_time)
            for run_ident in run_idents:
                shutil.rmtree(self.artifacts_dir / run_ident, ignore_errors=True)
            total_count += count
            if count < BATCH_SIZE:
                return total_count
            time.sleep(BATCH_WAIT_S)

    def _delete_rows_of_deleted_mappings(self) -> int:
        """Delete the rows of mappings that were deleted long ago; return their number.

        The row of a mapping stays as long as its VMID is in quarantine, in which no new VM gets the VMID.
        """
        retention_s = max(self.settings.smith_job_retention_s, self.settings.smith_vmid_quarantine_s)
        oldest_kept_time = utc_now() - timedelta(seconds=retention_s)
        return self._delete_in_batches(
            lambda session: mappings.prune(session, deleted_before=oldest_kept_time, limit=BATCH_SIZE)
        )

    def _delete_unused_secret_references(self) -> int:
        """Delete the rows of vault references whose service has neither a job nor a mapping.

        A deleted mapping does not count. Each row says which service owns a reference. Returns how many rows were
        deleted.
        """
        return self._delete_in_batches(lambda session: secret_references.prune(session, limit=BATCH_SIZE))

    def _delete_old_manual_runs(self) -> int:
        """Delete the rows of old runs that operators started; return their number."""
        oldest_kept_time = utc_now() - timedelta(seconds=self.settings.smith_job_retention_s)
        return self._delete_in_batches(
            lambda session: manual_runs.prune(session, started_before=oldest_kept_time, limit=BATCH_SIZE)
        )

    def _delete_in_batches(self, delete_batch: Callable[[Session], int]) -> int:
        """Call `delete_batch`, each time in a new transaction, until it deletes fewer than BATCH_SIZE rows.

        Returns how many rows were deleted.
        """
        total_count = 0
        while True:
            with transaction(self.engine) as session:
                count = delete_batch(session)
            total_count += count
            if count < BATCH_SIZE:
                return total_count
            time.sleep(BATCH_WAIT_S)

    def _delete_old_artifacts(self) -> int:
        """Delete all artifacts older than SMITH_JOB_RETENTION_S; return how many folders were deleted.

        `_delete_old_jobs` deletes only artifacts of runs that have a row. After a loss of the database, the runs before
        the loss have no row.
        """
        oldest_kept_mtime = time.time() - self.settings.smith_job_retention_s
        old_folders = [
            folder for written_at, _size_bytes, folder in self._artifact_folders() if written_at < oldest_kept_mtime
        ]
        for folder in old_folders:
            shutil.rmtree(folder, ignore_errors=True)
        return len(old_folders)

    def _limit_artifacts_size(self) -> int:
        """Delete the oldest artifacts until the total size is at most SMITH_ARTIFACTS_MAX_MIB.

        Returns how many folders were deleted.
        """
        max_bytes = self.settings.smith_artifacts_max_mib * BYTES_PER_MIB
        if not max_bytes:
            return 0  # no limit is set
        folders_oldest_first = sorted(self._artifact_folders())
        total_bytes = sum(size_bytes for _written_at, size_bytes, _folder in folders_oldest_first)
        deleted_count = 0
        for written_at, size_bytes, folder in folders_oldest_first:
            if total_bytes <= max_bytes or written_at > time.time() - MIN_AGE_FOR_SIZE_LIMIT_S:
                break
            shutil.rmtree(folder, ignore_errors=True)
            total_bytes -= size_bytes
            deleted_count += 1
        return deleted_count

    def _artifact_folders(self) -> Iterator[tuple[float, int, Path]]:
        """Yield modification time, size in bytes and path of each run's folder of artifacts."""
        if not self.artifacts_dir.is_dir():
            return
        for folder in self.artifacts_dir.iterdir():
            try:
                size_bytes = sum(file.stat().st_size for file in folder.iterdir())
                yield folder.stat().st_mtime, size_bytes, folder
            except OSError:
                continue  # the folder was deleted meanwhile, or the path is not a folder
