"""The counts and the durations (wait and run) of the jobs that have ended recently."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, update
from support.cli_world import submit

from executor.database import ended_jobs
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.model import JobStatus

NOW = datetime(2026, 11, 27, 10, 20, tzinfo=UTC)


def _store_ended_job(engine: Engine, *, at: datetime, status: JobStatus, wait_s: float = 0, run_s: float = 0) -> None:
    with transaction(engine) as session:
        job_id = submit(session)
        started = at - timedelta(seconds=run_s)
        times = {"finished_at": at, "started_at": started, "received_at": started - timedelta(seconds=wait_s)}
        session.execute(update(Job).where(Job.id == job_id).values(status=status, **times))


def test_ended_jobs_are_counted_by_hour_and_status(engine: Engine) -> None:
    _store_ended_job(engine, at=NOW, status=JobStatus.COMPLETED)
    _store_ended_job(engine, at=NOW.replace(minute=0), status=JobStatus.FAILED)
    _store_ended_job(engine, at=NOW.replace(hour=9, minute=59), status=JobStatus.COMPLETED)
    _store_ended_job(engine, at=NOW - timedelta(hours=3), status=JobStatus.COMPLETED)
    with read_only_session(engine) as session:
        counts = ended_jobs.ended_job_counts_by_hour(session, NOW, hours=3)
    assert [(count.start.hour, count.completed, count.failed) for count in counts] == [(8, 0, 0), (9, 1, 0), (10, 1, 1)]


def test_the_last_failures_are_those_of_the_jobs_that_failed_last(engine: Engine) -> None:
    for number, status in enumerate((JobStatus.FAILED, JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.FAILED)):
        _store_ended_job(engine, at=NOW - timedelta(minutes=number), status=status)
    with read_only_session(engine) as session:
        assert [job.id for job in ended_jobs.last_failed_jobs(session, 2)] == [1, 3]


def test_the_last_durations_are_those_of_the_jobs_that_ended_last(engine: Engine) -> None:
    for number in range(3):
        at = NOW - timedelta(minutes=number)
        _store_ended_job(engine, at=at, status=JobStatus.COMPLETED, wait_s=number, run_s=10 + number)
    with read_only_session(engine) as session:
        times = ended_jobs.last_job_durations(session, since=NOW - timedelta(minutes=9), limit=2)
        assert [(time.wait_s, time.run_s) for time in times] == [(0, 10), (1, 11)]
        assert ended_jobs.last_job_durations(session, since=NOW + timedelta(seconds=1), limit=2) == []
