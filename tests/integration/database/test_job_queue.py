"""The job queue: submitted jobs, owners of leases, transitions and runs."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session
from support.databases import LONG_AGO, new_job, row, submit
from support.job_steps import (
    BROKEN,
    DONE,
    LEASE_S,
    claimed,
    columns_of,
    due,
    expire_lease,
    finish,
    reap,
    requeue,
)

from executor.database import job_queue, job_runs, queries, reaping, run_queries
from executor.database.engine import read_only_session, transaction
from executor.database.job_queue import Lease
from executor.database.tables.jobs import Job
from executor.database.times import db_now
from executor.errors import StaleJob
from executor.model import JOB_STATUS_TRANSITIONS, JobResult, JobStatus
from executor.shared.error_codes import ErrorCode


def test_submitting_the_same_job_twice_writes_one_row(engine: Engine) -> None:
    new = new_job()
    with transaction(engine) as session:
        first = job_queue.submit(session, new)
    with transaction(engine) as session:
        second = job_queue.submit(session, new)
        known = queries.stored_fulcrum_ids(session, [new.fulcrum_id, str(uuid.uuid4())])
        rows = session.scalar(select(func.count()).select_from(Job))
    assert (first is not None, second, known, rows) == (True, None, {new.fulcrum_id}, 1)


def test_a_second_submit_changes_nothing_of_a_job_that_ended(engine: Engine) -> None:
    job_id = submit(engine, fulcrum_id=str(uuid.uuid4()))
    finish(engine, claimed(engine))
    before = columns_of(engine, job_id)
    with transaction(engine) as session:
        again = new_job(fulcrum_id=before["fulcrum_id"], action="delete", priority=9)
        assert job_queue.submit(session, again) is None
    assert columns_of(engine, job_id) == before


def test_simultaneous_pollers_write_one_row_for_each_job(engine: Engine) -> None:
    jobs = [new_job() for _ in range(20)]
    start = threading.Barrier(4, timeout=60)

    def poll() -> int:
        start.wait()
        written = 0
        for new in jobs:
            with transaction(engine) as session:
                written += job_queue.submit(session, new) is not None
        return written

    with ThreadPoolExecutor(4) as pool:
        written = [future.result() for future in [pool.submit(poll) for _ in range(4)]]
    assert sum(written) == len(jobs)


def test_payload_and_times_are_read_as_they_were_written(engine: Engine) -> None:
    """JSON null is stored as SQL NULL. A time keeps its zone and its microseconds, also on SQLite."""
    created = LONG_AGO + timedelta(microseconds=1)
    params = {"ключ": ["ü", "\U0001f600", None, True, 1.5, 2**63, {"a": []}]}
    job_id = submit(engine, params=params, service=None, core_created_at=created)
    job = row(engine, job_id)
    assert (job.params, job.service, job.core_created_at) == (params, None, created)
    with read_only_session(engine) as session:
        assert session.scalar(select(Job.id).where(Job.service.is_(None))) == job_id


def test_a_time_without_a_zone_is_refused(engine: Engine) -> None:
    with pytest.raises(Exception, match="datetime without a time zone"):
        submit(engine, core_created_at=LONG_AGO.replace(tzinfo=None))


def test_a_job_that_is_processing_at_fulcrum_core_is_stored_as_claimed(engine: Engine) -> None:
    job = row(engine, submit(engine, is_claimed_at_fulcrum=True))
    assert (job.status, job.claim_sent_at is not None, job.claimed_at is not None) == ("pending", True, True)


def test_a_new_job_is_stored_as_pending_and_not_claimed(engine: Engine) -> None:
    job = row(engine, submit(engine))
    assert (job.status, job.report_state, job.claim_sent_at, job.claimed_at) == ("pending", "none", None, None)
    assert (job.finished_at, job.error_code, job.error_message) == (None, None, None)


def test_a_job_that_another_executor_has_claimed_is_stored_as_failed(engine: Engine) -> None:
    job = row(engine, submit(engine, is_claimed_elsewhere=True))
    assert (job.status, job.report_state, job.claimed_at) == ("failed", "claimed_elsewhere", None)
    text = "JOB_CLAIMED_ELSEWHERE: another installation with this agent's token has claimed the job"
    assert (job.error_code, job.error_message) == ("JOB_CLAIMED_ELSEWHERE", text)
    assert job.finished_at is not None


Write = Callable[[Session, Lease], Any]

WRITES: dict[str, Write] = {
    "store_fulcrum_claim_sent": job_queue.store_fulcrum_claim_sent,
    "store_fulcrum_claim_accepted": job_queue.store_fulcrum_claim_accepted,
    "store_run_start": lambda session, lease: job_runs.store_run_start(
        session, lease, run_ident="run-1", playbook="create.yml"
    ),
    "finish": lambda session, lease: job_queue.finish(session, lease, DONE),
    "fail": lambda session, lease: job_queue.finish(session, lease, BROKEN),
    "requeue": lambda session, lease: job_queue.requeue(session, lease, backoff_s=0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_the_owner_of_the_lease_may_write(engine: Engine, write: Write) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        write(session, job_queue.lease_of(job))
    assert columns_of(engine, job.id) != {column.key: getattr(job, column.key) for column in Job.__table__.columns}


@pytest.mark.parametrize("ended_by", ["another owner", "the same owner again", "a reap", "a release", "a finish"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_an_owner_that_no_longer_has_the_lease_writes_nothing(engine: Engine, write: Write, ended_by: str) -> None:
    submit(engine)
    stale = job_queue.lease_of(claimed(engine, "alice"))
    _end_lease(engine, stale, ended_by)
    before = columns_of(engine, stale.job_id)
    with pytest.raises(StaleJob), transaction(engine) as session:
        write(session, stale)
    assert columns_of(engine, stale.job_id) == before
    with read_only_session(engine) as session:
        assert run_queries.runs_of_job(session, stale.job_id) == []


def _end_lease(engine: Engine, lease: Lease, how: str) -> None:
    if how == "a finish":
        with transaction(engine) as session:
            return job_queue.finish(session, lease, BROKEN)
    if how == "a release":
        with transaction(engine) as session:
            assert reaping.release_jobs_of_owner(session, lease.owner) == 1
        return None
    expire_lease(engine, lease.job_id)
    assert reap(engine) == [(lease.job_id, JobStatus.PENDING)]
    if how != "a reap":
        claimed(engine, lease.owner if how == "the same owner again" else "bob")
    return None


def test_a_lease_of_another_epoch_or_owner_is_stale(engine: Engine) -> None:
    submit(engine)
    lease = job_queue.lease_of(claimed(engine))
    for wrong in (
        Lease(job_id=lease.job_id, owner="bob", epoch=lease.epoch),
        Lease(job_id=lease.job_id, owner=lease.owner, epoch=lease.epoch + 1),
        Lease(job_id=lease.job_id, owner=lease.owner, epoch=lease.epoch - 1),
        Lease(job_id=lease.job_id + 1, owner=lease.owner, epoch=lease.epoch),
    ):
        text = f"no longer has the lease of job {wrong.job_id} .epoch {wrong.epoch}."
        with pytest.raises(StaleJob, match=text), transaction(engine) as session:
            job_queue.finish(session, wrong, DONE)
    assert row(engine, lease.job_id).status == "processing"


def test_an_unclaimed_row_has_no_lease(engine: Engine) -> None:
    with pytest.raises(ValueError, match="has no owner"):
        job_queue.lease_of(row(engine, submit(engine)))


def test_an_owner_may_finish_after_its_lease_expired_if_it_was_not_reaped(engine: Engine) -> None:
    """Only a new epoch ends the right to write. Until there is one, no other owner can store a result."""
    submit(engine)
    job = claimed(engine)
    expire_lease(engine, job.id)
    finish(engine, job)
    assert row(engine, job.id).status == "completed"


#: The function of each allowed transition.
TRANSITION_FUNCTIONS: dict[tuple[JobStatus, JobStatus], Write] = {
    (JobStatus.PENDING, JobStatus.PROCESSING): lambda session, _: job_queue.claim(session, "bob", lease_s=LEASE_S),
    (JobStatus.PENDING, JobStatus.FAILED): lambda session, lease: job_queue.cancel_or_request_cancel(
        session, lease.job_id
    ),
    (JobStatus.PROCESSING, JobStatus.PENDING): WRITES["requeue"],
    (JobStatus.PROCESSING, JobStatus.COMPLETED): WRITES["finish"],
    (JobStatus.PROCESSING, JobStatus.FAILED): WRITES["fail"],
}

PAIRS = [(before, after) for before in JobStatus for after in JobStatus]


def _lease_of_job_in_status(engine: Engine, status: JobStatus) -> Lease:
    """Bring a job to a status; return the lease that the job had while it was processing."""
    submit(engine)
    job = claimed(engine, "alice")
    lease = job_queue.lease_of(job)
    if status is JobStatus.PENDING:
        requeue(engine, job)
    elif status is not JobStatus.PROCESSING:
        finish(engine, job, DONE if status is JobStatus.COMPLETED else BROKEN)
    return lease


def test_every_allowed_transition_has_a_function() -> None:
    assert set(TRANSITION_FUNCTIONS) == {
        (before, after) for before in JOB_STATUS_TRANSITIONS for after in JOB_STATUS_TRANSITIONS[before]
    }


@pytest.mark.parametrize(("before", "after"), TRANSITION_FUNCTIONS, ids=str)
def test_an_allowed_transition_succeeds(engine: Engine, before: JobStatus, after: JobStatus) -> None:
    lease = _lease_of_job_in_status(engine, before)
    with transaction(engine) as session:
        TRANSITION_FUNCTIONS[before, after](session, lease)
    assert row(engine, lease.job_id).status == after


@pytest.mark.parametrize(("before", "after"), [pair for pair in PAIRS if pair not in TRANSITION_FUNCTIONS], ids=str)
def test_a_transition_that_is_not_allowed_is_refused(engine: Engine, before: JobStatus, after: JobStatus) -> None:
    """Each function that leads to the status is called. The row does not change."""
    lease = _lease_of_job_in_status(engine, before)
    columns_before = columns_of(engine, lease.job_id)
    for (_, leads_to), function in TRANSITION_FUNCTIONS.items():
        if leads_to is not after or (before, leads_to) in TRANSITION_FUNCTIONS:
            continue
        with transaction(engine) as session:
            try:
                function(session, lease)
            except StaleJob:
                continue
    columns_after = columns_of(engine, lease.job_id)  # a refused cancellation may leave its request
    assert columns_after | {"cancel_requested": False} == columns_before | {"cancel_requested": False}


def test_finish_stores_the_result(engine: Engine) -> None:
    done, broken = submit(engine, age=1), submit(engine, age=2)
    finish(engine, claimed(engine), DONE)
    finish(engine, claimed(engine), BROKEN)
    good, bad = row(engine, done), row(engine, broken)
    assert (good.status, good.result, good.error_code, good.error_message) == ("completed", DONE.vm, None, None)
    assert (bad.status, bad.result, bad.error_code) == ("failed", None, "CAPACITY")
    assert bad.error_message == "CAPACITY: no space"
    assert {good.report_state, bad.report_state} == {"due"}
    assert good.finished_at is not None
    assert (good.lease_until, good.owner) == (None, "alice")  # the row keeps its last owner


def test_the_end_of_a_job_stores_the_detail_for_the_operator_and_ends_the_backoff_of_a_report(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        session.execute(update(Job).values(report_after=db_now(60)))
    broken = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="no space", operator_detail="no space on pve1")
    finish(engine, job, broken)
    ended_job = row(engine, job.id)
    assert (ended_job.error_message, ended_job.operator_detail) == ("CAPACITY: no space", broken.operator_message)
    assert due(engine) == [job.id]


def test_the_amounts_that_a_job_reserves_for_its_tenant_are_stored(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        job_queue.store_reserved_amounts(session, job_queue.lease_of(job), {"cores": 2, "memory_mib": 1024})
    stored = row(engine, job.id)
    assert (stored.reserved_cores, stored.reserved_memory_mib, stored.reserved_vms) == (2, 1024, 0)


@pytest.mark.parametrize("counts_as_attempt", [True, False])
def test_an_attempt_that_does_not_count_gives_its_number_to_the_next_one(
    engine: Engine, counts_as_attempt: bool
) -> None:
    submit(engine)
    requeue(engine, claimed(engine))
    second = claimed(engine)
    with transaction(engine) as session:
        lease = job_queue.lease_of(second)
        job_queue.requeue(session, lease, backoff_s=0, reason="later", counts_as_attempt=counts_as_attempt)
    third = claimed(engine)
    assert (second.attempt, third.attempt) == (2, 3 if counts_as_attempt else 2)


@pytest.mark.parametrize(
    ("operator_reason", "operator_detail"),
    [(None, "busy"), ("busy: pve1", "busy: pve1")],
    ids=["same_reason", "longer_reason_for_the_operator"],
)
def test_a_requeued_job_stores_the_reason_for_the_tenant_and_for_the_operator(
    engine: Engine, operator_reason: str | None, operator_detail: str
) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        lease = job_queue.lease_of(job)
        job_queue.requeue(session, lease, backoff_s=0, reason="busy", operator_reason=operator_reason)
    stored = row(engine, job.id)
    assert (stored.error_message, stored.operator_detail) == ("busy", operator_detail)


def test_a_run_is_stored_before_it_starts_and_its_end_is_stored_without_a_lease(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        job_runs.store_run_start(session, job_queue.lease_of(job), run_ident="create-1", playbook="create.yml")
    with transaction(engine) as session:
        job_runs.store_run_end(
            session, "create-1", status="failed", rc=2, reason="CAPACITY: x", folder="f", upids=["UPID:a"]
        )
    with read_only_session(engine) as session:
        run = run_queries.find_run(session, "create-1")
        assert run is not None
        assert run_queries.find_run(session, "create-2") is None
    assert (run.job_id, run.attempt, run.playbook, run.rc) == (job.id, 1, "create.yml", 2)
    assert run.started_at == row(engine, job.id).started_at is not None
    assert (run.status, run.upids, run.ended_at is not None) == ("failed", ["UPID:a"], True)
    assert row(engine, job.id).run_ident == "create-1"
