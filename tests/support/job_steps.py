"""Steps of jobs for tests: claim, finish, requeue, reap, report, each in a transaction of its own."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, update
from support.databases import row, submit

from executor.database import job_queue, other_leases, outbox, reaping
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.database.times import db_now
from executor.model import JobResult, JobStatus, ReportState
from executor.shared.error_codes import ErrorCode

LEASE_S = 30.0
DONE = JobResult(succeeded=True, vm={"vmid": 101, "status": "running"})
BROKEN = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="no space")


def claim(engine: Engine, owner: str = "alice", **wanted: Any) -> Job | None:
    """Claim the next job of the queue; return None if there is none."""
    with transaction(engine) as session:
        return job_queue.claim(session, owner, **({"lease_s": LEASE_S} | wanted))


def claimed(engine: Engine, owner: str = "alice", **wanted: Any) -> Job:
    """Claim the next job of the queue, which must have one; return it."""
    job = claim(engine, owner, **wanted)
    assert job is not None
    return job


def finish(engine: Engine, job: Job, result: JobResult = DONE) -> None:
    with transaction(engine) as session:
        job_queue.finish(session, job_queue.lease_of(job), result)


def requeue(engine: Engine, job: Job, backoff_s: float = 0) -> None:
    with transaction(engine) as session:
        job_queue.requeue(session, job_queue.lease_of(job), backoff_s=backoff_s, reason="later")


def reap(engine: Engine, all_owners_except: str | None = None) -> list[tuple[int, JobStatus]]:
    """Reap the jobs of all owners except the named one. If none is named, reap the jobs whose lease has expired."""
    with transaction(engine) as session:
        leases = other_leases.leases_of_other_processes(session, all_owners_except or "none")
        return reaping.reap(session, [lease for lease in leases if all_owners_except or lease.is_expired])


def expire_lease(engine: Engine, job_id: int) -> None:
    """Let the lease of the job have expired a second ago."""
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_until=db_now(-1)))


def end_backoff(engine: Engine, job_id: int) -> None:
    """Let the backoff of the job and of its report have ended a second ago."""
    with transaction(engine) as session:
        past = {"available_at": db_now(-1), "report_after": db_now(-1)}
        session.execute(update(Job).where(Job.id == job_id).values(**past))


def columns_of(engine: Engine, job_id: int) -> dict[str, Any]:
    """Return every column of the job's row."""
    job = row(engine, job_id)
    return {column.key: getattr(job, column.key) for column in Job.__table__.columns}


def ended(engine: Engine, **wanted: Any) -> int:
    """Submit a job, and claim and finish it; return its id."""
    job_id = submit(engine, **wanted)
    job = claimed(engine)
    assert job.id == job_id
    finish(engine, job)
    return job_id


def due(engine: Engine, limit: int = 50) -> list[int]:
    """Return the ids of the jobs whose reports must be sent now."""
    with read_only_session(engine) as session:
        return [job.id for job in outbox.jobs_with_due_report(session, limit)]


def settle(engine: Engine, *job_ids: int) -> None:
    """Record that FulcrumCore has acknowledged the reports of these jobs."""
    with transaction(engine) as session:
        for job_id in job_ids:
            outbox.set_report_state(session, job_id, ReportState.REPORTED)
