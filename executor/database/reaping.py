"""Takes jobs from their owners. The owner of a job is the agent process that claimed the job.

`reap` takes jobs from other agent processes. `release_job` and `release_jobs_of_owner` take jobs from this
agent process. Each of these functions raises the job's epoch, so that later writes of the earlier owner fail. No
function commits.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Update, select, update
from sqlalchemy.orm import Session

from executor.database import job_events
from executor.database.job_queue import report_state_unless_local, require_transition
from executor.database.literals import PROCESSING_LITERAL  # an SQL literal, so that SQLite uses partial indexes
from executor.database.other_leases import LeaseOfOtherProcess
from executor.database.statements import execute_and_count
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.model import MAX_CRASHES, JobEventKind, JobResult, JobStatus, ReportState
from executor.shared.error_codes import ErrorCode

#: Reads how many crashes a job had, and whether the current attempt is waiting. Before its run, an attempt may wait
#: for an answer of Proxmox or for a clone slot (the permission to run one clone).
_SELECT_CRASH_COLUMNS = select(Job.crashes, Job.is_waiting)


def reap(session: Session, leases: Collection[LeaseOfOtherProcess]) -> list[tuple[int, JobStatus]]:
    """Take the jobs with these leases from other agent processes. Return the ids and new statuses of the reaped jobs.

    If a lease has changed since it was read, for example because its owner has renewed the lease, the job is not
    reaped. Each reaping counts as a crash. After MAX_CRASHES crashes, the job fails with the code QUARANTINED, because
    the job probably makes the agent crash. If the attempt was waiting for an answer of Proxmox or for a clone slot, the
    reaping does not count as a crash, and the next attempt gets the same attempt number.
    """
    reaped_jobs = []
    for lease in leases:
        is_unchanged = (
            (Job.id == lease.job_id)
            & (Job.owner == lease.owner)
            & (Job.epoch == lease.epoch)
            & Job.lease_until.is_not_distinct_from(lease.lease_until)
            & Job.run_ident.is_not_distinct_from(lease.run_ident)  # no run has started since the lease was read
            & (Job.status == PROCESSING_LITERAL)
        )
        # If the owner is just renewing the lease, the job's row is locked, and the job is skipped.
        crash_columns = session.execute(
            _SELECT_CRASH_COLUMNS.where(is_unchanged).with_for_update(skip_locked=True)
        ).one_or_none()
        if crash_columns is not None:
            reaped_jobs.append((lease.job_id, _take_from_owner(session, is_unchanged, *crash_columns)))
            text = f"the agent process {lease.owner} has ended, or has not renewed its lease"
            job_events.add_event(session, lease.job_id, JobEventKind.REAPED, text)
    return reaped_jobs


def status_after_crash(crashes: int) -> JobStatus:
    """Return the new status of a job. `crashes` is the number of its crashes, including the new one. Pure function."""
    return JobStatus.FAILED if crashes >= MAX_CRASHES else JobStatus.PENDING


def _take_from_owner(
    session: Session, condition: ColumnElement[bool], earlier_crash_count: int, was_waiting: bool
) -> JobStatus:
    """Take the job that meets the condition from its owner; return the job's new status.

    Count one more crash, unless the attempt was waiting.
    """
    crash_count = earlier_crash_count if was_waiting else earlier_crash_count + 1
    status = JobStatus.PENDING if was_waiting else status_after_crash(crash_count)
    require_transition(JobStatus.PROCESSING, status)
    columns = _columns_of_taken_job(status, crash_count)
    if was_waiting:
        columns |= {"attempt": Job.attempt - 1, "is_waiting": False}
    session.execute(update(Job).where(condition).values(**columns))
    return status


def _columns_of_taken_job(status: JobStatus, crash_count: int) -> dict[str, Any]:
    """Return the new values of the columns of a job that is taken from its owner. `status` is the job's new status."""
    columns: dict[str, Any] = {"status": status, "owner": None, "lease_until": None, "crashes": crash_count}
    # The process that owned the job may still exist, for example because it is only suspended. With the new epoch, its
    # later writes fail.
    columns["epoch"] = Job.epoch + 1
    if status is JobStatus.FAILED:
        text = f"the agent stopped {crash_count} times while it worked on this job"
        quarantined = JobResult(succeeded=False, code=ErrorCode.QUARANTINED, detail=text)
        columns |= {
            "error_code": quarantined.code,
            "error_message": quarantined.message,
            "finished_at": utc_now(),
            # A local job is one that the agent created itself. FulcrumCore gets no report of such a job.
            "report_state": report_state_unless_local(ReportState.DUE),
        }
    return columns


def release_jobs_of_owner(session: Session, owner: str, *, running_job_ids: Collection[int] = ()) -> int:
    """Release the jobs that a stopping agent process owns: they become pending. Return how many jobs were released.

    The jobs in `running_job_ids` keep their leases, because their runs may still change their VMs. The column `crashes`
    of the jobs does not change.
    """
    stmt = _release_statement(owner).where(Job.id.not_in(running_job_ids)).returning(Job.id)
    job_ids = session.scalars(stmt).all()
    for job_id in job_ids:
        job_events.add_event(session, job_id, JobEventKind.RELEASED, f"the agent process {owner} has stopped")
    return len(job_ids)


def release_job(session: Session, job_id: int, owner: str, *, counts_as_crash: bool = True) -> JobStatus | None:
    """Take a job from its owner, because the end of the attempt could not be stored. Return the job's new status.

    The caller has checked that no thread of the owner processes the job. With `counts_as_crash`, the release counts as
    a crash, so that a job whose end can never be stored is not processed again and again. If `counts_as_crash` is
    False, or if the attempt was waiting, the release does not count as a crash, and the next attempt gets the same
    attempt number. Returns None when `owner` no longer owns the job.
    """
    if not counts_as_crash:
        stmt = _release_statement(owner).where(Job.id == job_id).values(attempt=Job.attempt - 1)
        if execute_and_count(session, stmt) == 0:
            return None
        _record_release(session, job_id)
        return JobStatus.PENDING
    is_owned = (Job.id == job_id) & (Job.owner == owner) & (Job.status == PROCESSING_LITERAL)
    crash_columns = session.execute(_SELECT_CRASH_COLUMNS.where(is_owned).with_for_update()).one_or_none()
    if crash_columns is None:
        return None
    status = _take_from_owner(session, is_owned, *crash_columns)
    _record_release(session, job_id)
    return status


def _record_release(session: Session, job_id: int) -> None:
    job_events.add_event(session, job_id, JobEventKind.RELEASED, "the end of the attempt could not be stored")


def _release_statement(owner: str) -> Update:
    stmt = update(Job).where(Job.owner == owner, Job.status == PROCESSING_LITERAL)
    # With `available_at=None`, there is no backoff: an agent process may claim the job at once.
    return stmt.values(status=JobStatus.PENDING, owner=None, lease_until=None, available_at=None, epoch=Job.epoch + 1)
