"""The job queue: leases that are renewed, reaped or released, and when their end counts as a crash of the job."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, select, text, update
from support.databases import row, submit
from support.job_steps import (
    LEASE_S,
    claim,
    claimed,
    columns_of,
    expire_lease,
    finish,
    reap,
)

from executor.database import job_queue, other_leases, outbox, reaping
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.database.times import db_now
from executor.model import MAX_CRASHES, JobResult, JobStatus


def test_renew_leases_extends_every_lease_of_the_owner_and_returns_cancel_requests(engine: Engine) -> None:
    for _ in range(3):
        submit(engine)
    mine, cancelled, others = claimed(engine, "alice"), claimed(engine, "alice"), claimed(engine, "bob")
    for job in (mine, cancelled, others):
        expire_lease(engine, job.id)
    with transaction(engine) as session:
        assert job_queue.cancel_or_request_cancel(session, cancelled.id) is JobStatus.PROCESSING
        assert job_queue.renew_leases(session, "alice", lease_s=LEASE_S) == {mine.id: False, cancelled.id: True}
    with read_only_session(engine) as session:
        in_range = Job.lease_until > db_now(LEASE_S - 10), Job.lease_until <= db_now(LEASE_S)
        assert session.execute(select(*in_range).where(Job.id == mine.id)).one() == (True, True)
    assert reap(engine) == [(others.id, JobStatus.PENDING)]


def test_a_job_that_has_ended_has_no_lease_to_renew_and_is_not_released(engine: Engine) -> None:
    job_id = submit(engine)
    finish(engine, claimed(engine, "alice"))
    before = columns_of(engine, job_id)
    with transaction(engine) as session:
        assert job_queue.renew_leases(session, "alice", lease_s=LEASE_S) == {}
        assert reaping.release_jobs_of_owner(session, "alice") == 0
        assert not reaping.release_job(session, job_id, "alice")
    assert columns_of(engine, job_id) == before


def test_a_lease_that_was_reaped_is_not_renewed(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine, "alice")
    expire_lease(engine, job.id)
    reap(engine)
    claimed(engine, "bob")
    with transaction(engine) as session:
        assert job_queue.renew_leases(session, "alice", lease_s=LEASE_S) == {}


def test_a_lease_that_has_not_expired_is_not_reaped(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    assert reap(engine) == []
    assert row(engine, job.id).status == "processing"


def test_a_lease_that_was_renewed_after_it_was_read_is_not_reaped(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine, "alice")
    expire_lease(engine, job.id)
    with read_only_session(engine) as session:
        leases = other_leases.leases_of_other_processes(session, "bob")
    assert [(lease.job_id, lease.owner, lease.is_expired) for lease in leases] == [(job.id, "alice", True)]
    with transaction(engine) as session:
        job_queue.renew_leases(session, "alice", lease_s=LEASE_S)
    with transaction(engine) as session:
        assert reaping.reap(session, leases) == []
    assert row(engine, job.id).owner == "alice"


def test_a_reap_on_postgresql_skips_a_lease_that_its_owner_is_renewing(postgres_engine: Engine) -> None:
    submit(postgres_engine)
    job = claimed(postgres_engine, "alice")
    expire_lease(postgres_engine, job.id)
    with read_only_session(postgres_engine) as session:
        leases = other_leases.leases_of_other_processes(session, "bob")
    with transaction(postgres_engine) as owner:
        job_queue.renew_leases(owner, "alice", lease_s=LEASE_S)
        with transaction(postgres_engine) as session:
            session.execute(text("SET LOCAL lock_timeout = '5s'"))
            assert reaping.reap(session, leases) == []


def test_a_lease_of_a_later_claim_of_the_job_is_not_reaped(engine: Engine) -> None:
    submit(engine)
    expire_lease(engine, claimed(engine, "alice").id)
    with read_only_session(engine) as session:
        leases = other_leases.leases_of_other_processes(session, "bob")
    reap(engine)
    job = claimed(engine, "alice")
    with transaction(engine) as session:
        session.execute(update(Job).values(lease_until=leases[0].lease_until))
        assert reaping.reap(session, leases) == []
    assert row(engine, job.id).epoch == job.epoch


def test_a_sole_owner_reaps_the_jobs_of_every_other_owner_before_their_leases_expire(engine: Engine) -> None:
    for _ in range(3):
        submit(engine)
    finish(engine, claimed(engine, "before the restart"))
    earlier_job, own_job = claimed(engine, "before the restart"), claimed(engine, "me")
    assert reap(engine, all_owners_except="me") == [(earlier_job.id, JobStatus.PENDING)]
    job = row(engine, earlier_job.id)
    assert (job.owner, job.lease_until, job.crashes, job.epoch) == (None, None, 1, earlier_job.epoch + 1)
    assert (job.error_code, job.error_message, job.finished_at, job.report_state) == (None, None, None, "none")
    assert row(engine, own_job.id).status == "processing"


def test_a_job_is_quarantined_after_the_third_crash(engine: Engine) -> None:
    job_id = submit(engine)
    outcomes = []
    for _ in range(3):
        expire_lease(engine, claimed(engine).id)
        outcomes += reap(engine)
    assert [status for _, status in outcomes] == ["pending", "pending", "failed"]
    job = row(engine, job_id)
    assert (job.error_code, job.report_state, job.crashes) == ("QUARANTINED", "due", 3)
    assert job.error_message == "QUARANTINED: the agent stopped 3 times while it worked on this job"
    assert job.finished_at is not None
    assert claim(engine) is None


def test_a_job_with_two_crashes_runs_alone_so_that_its_third_crash_quarantines_no_other_job(engine: Engine) -> None:
    on_probation, other = submit(engine, age=1), submit(engine, age=2)
    for _ in range(2):
        for _ in ("on_probation", "other"):
            claimed(engine, "a")
        reap(engine, all_owners_except="no-agent")
    fresh = submit(engine, age=0)
    assert claimed(engine, "b").id == fresh
    assert claim(engine, "b") is None, "the job with two crashes waits, because agent b runs another job"
    assert claimed(engine, "c").id == on_probation, "agent c runs no other job"
    assert claim(engine, "c") is None, "agent c claims no other job while the job with two crashes runs"
    assert reap(engine, all_owners_except="b") == [(on_probation, JobStatus.FAILED)]
    assert row(engine, other).crashes == 2


@pytest.mark.parametrize("end", ["finished", "cancelled", "quarantined"])
def test_a_local_job_is_never_reported(engine: Engine, end: str) -> None:
    job_id = submit(engine, is_local=True)
    if end == "cancelled":
        with transaction(engine) as session:
            job_queue.cancel_or_request_cancel(session, job_id)
    elif end == "finished":
        lease = job_queue.lease_of(claimed(engine))
        with transaction(engine) as session:
            job_queue.finish(session, lease, JobResult(succeeded=True, vm={"vmid": 100}))
    else:
        for _ in range(3):
            expire_lease(engine, claimed(engine).id)
            reap(engine)
    assert row(engine, job_id).report_state == "local"
    assert row(engine, job_id).status == ("completed" if end == "finished" else "failed")
    with read_only_session(engine) as session:
        assert outbox.jobs_with_due_report(session, 10) == []


def test_release_jobs_of_owner_ends_the_leases_and_counts_no_crash(engine: Engine) -> None:
    for _ in range(3):
        submit(engine)
    mine = [claimed(engine, "alice").id for _ in range(2)]
    others = claimed(engine, "bob").id
    with transaction(engine) as session:
        assert reaping.release_jobs_of_owner(session, "alice") == 2
    released = [row(engine, job_id) for job_id in mine]
    assert {(job.status, job.owner, job.crashes, job.lease_until) for job in released} == {("pending", None, 0, None)}
    assert {job.epoch for job in released} == {2}
    assert row(engine, others).status == "processing"


def test_release_jobs_of_owner_does_not_release_running_jobs(engine: Engine) -> None:
    for _ in range(2):
        submit(engine)
    running, waiting = claimed(engine, "alice"), claimed(engine, "alice")
    with transaction(engine) as session:
        assert reaping.release_jobs_of_owner(session, "alice", running_job_ids=[running.id]) == 1
    assert (row(engine, running.id).status, row(engine, waiting.id).status) == ("processing", "pending")


def test_release_job_makes_one_job_pending_and_counts_a_crash(engine: Engine) -> None:
    for age in (1, 2):
        submit(engine, age=age)
    released, other = claimed(engine, "alice"), claimed(engine, "alice")
    with transaction(engine) as session:
        assert not reaping.release_job(session, released.id, "bob")
        assert reaping.release_job(session, released.id, "alice") is JobStatus.PENDING
        assert not reaping.release_job(session, released.id, "alice")
    job = row(engine, released.id)
    assert (job.status, job.owner, job.crashes, job.epoch) == ("pending", None, 1, released.epoch + 1)
    assert row(engine, other.id).status == "processing"


def test_a_release_that_does_not_count_as_a_crash_does_not_count_as_an_attempt(engine: Engine) -> None:
    submit(engine)
    first = claimed(engine, "alice")
    with transaction(engine) as session:
        assert reaping.release_job(session, first.id, "bob", counts_as_crash=False) is None
        assert reaping.release_job(session, first.id + 1, "alice", counts_as_crash=False) is None
        assert reaping.release_job(session, first.id, "alice", counts_as_crash=False) is JobStatus.PENDING
        assert not reaping.release_job(session, first.id, "alice", counts_as_crash=False)
    second = claimed(engine, "bob")
    assert (second.id, second.attempt, second.crashes, second.epoch) == (first.id, first.attempt, 0, first.epoch + 2)


def test_a_job_that_is_released_as_often_as_max_crashes_is_quarantined(engine: Engine) -> None:
    submit(engine)
    statuses = []
    for _ in range(MAX_CRASHES):
        job = claimed(engine, "alice")
        with transaction(engine) as session:
            statuses.append(reaping.release_job(session, job.id, "alice"))
    assert statuses == [JobStatus.PENDING] * (MAX_CRASHES - 1) + [JobStatus.FAILED]
    assert (row(engine, job.id).error_code, row(engine, job.id).report_state) == ("QUARANTINED", "due")


def test_a_cancel_request_survives_a_crash_of_the_owner(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        job_queue.cancel_or_request_cancel(session, job.id)
    reap(engine, all_owners_except="the next agent")
    assert claimed(engine).cancel_requested
