"""Submitting, owning, ending and pruning jobs, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session
from support.databases import LONG_AGO, new_job, row, submit
from support.job_steps import (
    BROKEN,
    DONE,
    LEASE_S,
    claim,
    claimed,
    columns_of,
    due,
    ended,
    expire_lease,
    finish,
    reap,
    requeue,
    settle,
)

from executor.database import job_queue, other_leases, outbox, queries
from executor.database.engine import reading, transaction
from executor.database.job_queue import Lease
from executor.database.tables import Job, Run, db_now, utc_now
from executor.errors import StaleJob
from executor.model import MAX_CRASHES, TRANSITIONS, JobResult, JobStatus, ReportState
from executor.shared.error_codes import ErrorCode

# --- submit -----------------------------------------------------------------------------------------------------------


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


def test_two_pollers_at_once_write_one_row(engine: Engine) -> None:
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
    with reading(engine) as session:
        assert session.scalar(select(Job.id).where(Job.service.is_(None))) == job_id


def test_a_time_without_a_zone_is_refused(engine: Engine) -> None:
    with pytest.raises(Exception, match="naive datetime"):
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
    text = "JOB_CLAIMED_ELSEWHERE: another executor with this agent's token has claimed the job"
    assert (job.error_code, job.error_message) == ("JOB_CLAIMED_ELSEWHERE", text)
    assert job.finished_at is not None


# --- leases -----------------------------------------------------------------------------------------------------------

Write = Callable[[Session, Lease], Any]

WRITES: dict[str, Write] = {
    "note_fulcrum_claim_sent": job_queue.note_fulcrum_claim_sent,
    "note_fulcrum_claim_accepted": job_queue.note_fulcrum_claim_accepted,
    "note_started": lambda session, lease: job_queue.note_started(
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


@pytest.mark.parametrize("taken_by", ["another owner", "the same owner again", "a reap", "a release", "a finish"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_stale_owner_writes_nothing(engine: Engine, write: Write, taken_by: str) -> None:
    submit(engine)
    stale = job_queue.lease_of(claimed(engine, "alice"))
    _take_over(engine, stale, taken_by)
    before = columns_of(engine, stale.job_id)
    with pytest.raises(StaleJob), transaction(engine) as session:
        write(session, stale)
    assert columns_of(engine, stale.job_id) == before
    with reading(engine) as session:
        assert queries.runs_of_job(session, stale.job_id) == []


def _take_over(engine: Engine, lease: Lease, how: str) -> None:
    if how == "a finish":
        with transaction(engine) as session:
            return job_queue.finish(session, lease, BROKEN)
    if how == "a release":
        with transaction(engine) as session:
            assert job_queue.release_all(session, lease.owner) == 1
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
    """Only a new epoch ends the right to write; until then no other owner can have a result."""
    submit(engine)
    job = claimed(engine)
    expire_lease(engine, job.id)
    finish(engine, job)
    assert row(engine, job.id).status == "completed"


# --- transitions ------------------------------------------------------------------------------------------------------

#: The function of each allowed transition.
TRANSITION_FUNCTIONS: dict[tuple[JobStatus, JobStatus], Write] = {
    (JobStatus.PENDING, JobStatus.PROCESSING): lambda session, _: job_queue.claim(session, "bob", lease_s=LEASE_S),
    (JobStatus.PENDING, JobStatus.FAILED): lambda session, lease: job_queue.request_cancel(session, lease.job_id),
    (JobStatus.PROCESSING, JobStatus.PENDING): WRITES["requeue"],
    (JobStatus.PROCESSING, JobStatus.COMPLETED): WRITES["finish"],
    (JobStatus.PROCESSING, JobStatus.FAILED): WRITES["fail"],
}

PAIRS = [(before, after) for before in JobStatus for after in JobStatus]


def _lease_in(engine: Engine, status: JobStatus) -> Lease:
    """Bring a job to a status; return its lease from the time when it was processed."""
    submit(engine)
    job = claimed(engine, "alice")
    lease = job_queue.lease_of(job)
    if status is JobStatus.PENDING:
        requeue(engine, job)
    elif status is not JobStatus.PROCESSING:
        finish(engine, job, DONE if status is JobStatus.COMPLETED else BROKEN)
    return lease


def test_every_allowed_transition_has_a_function() -> None:
    assert set(TRANSITION_FUNCTIONS) == {(before, after) for before in TRANSITIONS for after in TRANSITIONS[before]}


@pytest.mark.parametrize(("before", "after"), TRANSITION_FUNCTIONS, ids=str)
def test_an_allowed_transition_succeeds(engine: Engine, before: JobStatus, after: JobStatus) -> None:
    lease = _lease_in(engine, before)
    with transaction(engine) as session:
        TRANSITION_FUNCTIONS[before, after](session, lease)
    assert row(engine, lease.job_id).status == after


@pytest.mark.parametrize(("before", "after"), [pair for pair in PAIRS if pair not in TRANSITION_FUNCTIONS], ids=str)
def test_a_transition_that_is_not_allowed_is_refused(engine: Engine, before: JobStatus, after: JobStatus) -> None:
    """Each function that leads to the status is called. The row does not change."""
    lease = _lease_in(engine, before)
    was = columns_of(engine, lease.job_id)
    for (_, leads_to), function in TRANSITION_FUNCTIONS.items():
        if leads_to is not after or (before, leads_to) in TRANSITION_FUNCTIONS:
            continue
        with transaction(engine) as session:
            try:
                function(session, lease)
            except StaleJob:
                continue
    now = columns_of(engine, lease.job_id)
    assert now | {"cancel_requested": False} == was | {"cancel_requested": False}


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
    assert (good.lease_until, good.owner) == (None, "alice")  # the owner stays as history


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


def test_what_a_job_adds_to_the_usage_of_its_tenant_is_stored(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        job_queue.note_reserved(session, job_queue.lease_of(job), {"cores": 2, "memory_mib": 1024})
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
    ("operator_reason", "operator_detail"), [(None, "busy"), ("busy: pve1", "busy: pve1")], ids=["same", "more"]
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


def test_a_run_is_stored_before_it_starts_and_any_owner_stores_its_end(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        job_queue.note_started(session, job_queue.lease_of(job), run_ident="create-1", playbook="create.yml")
    with transaction(engine) as session:
        job_queue.note_run_ended(
            session, "create-1", status="failed", rc=2, reason="CAPACITY: x", folder="f", upids=["UPID:a"]
        )
    with reading(engine) as session:
        run = queries.find_run(session, "create-1")
        assert run is not None
        assert queries.find_run(session, "create-2") is None
    assert (run.job_id, run.attempt, run.playbook, run.rc) == (job.id, 1, "create.yml", 2)
    assert run.started_at == row(engine, job.id).started_at is not None
    assert (run.status, run.upids, run.ended_at is not None) == ("failed", ["UPID:a"], True)
    assert row(engine, job.id).run_ident == "create-1"


# --- renew, reap, release ---------------------------------------------------------------------------------------------


def test_renew_extends_every_lease_of_the_owner_and_returns_cancel_requests(engine: Engine) -> None:
    for _ in range(3):
        submit(engine)
    mine, cancelled, others = claimed(engine, "alice"), claimed(engine, "alice"), claimed(engine, "bob")
    for job in (mine, cancelled, others):
        expire_lease(engine, job.id)
    with transaction(engine) as session:
        assert job_queue.request_cancel(session, cancelled.id) is JobStatus.PROCESSING
        assert job_queue.renew(session, "alice", lease_s=LEASE_S) == {mine.id: False, cancelled.id: True}
    with reading(engine) as session:
        lease = Job.lease_until > db_now(LEASE_S - 10), Job.lease_until <= db_now(LEASE_S)
        assert session.execute(select(*lease).where(Job.id == mine.id)).one() == (True, True)
    assert reap(engine) == [(others.id, JobStatus.PENDING)]


def test_a_job_that_has_ended_has_no_lease_to_renew_and_is_not_released(engine: Engine) -> None:
    job_id = submit(engine)
    finish(engine, claimed(engine, "alice"))
    before = columns_of(engine, job_id)
    with transaction(engine) as session:
        assert job_queue.renew(session, "alice", lease_s=LEASE_S) == {}
        assert job_queue.release_all(session, "alice") == 0
        assert not job_queue.release(session, job_id, "alice")
    assert columns_of(engine, job_id) == before


def test_a_lease_that_was_reaped_is_not_renewed(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine, "alice")
    expire_lease(engine, job.id)
    reap(engine)
    claimed(engine, "bob")
    with transaction(engine) as session:
        assert job_queue.renew(session, "alice", lease_s=LEASE_S) == {}


def test_a_lease_that_has_not_expired_is_not_reaped(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    assert reap(engine) == []
    assert row(engine, job.id).status == "processing"


def test_a_lease_that_was_renewed_after_it_was_read_is_not_reaped(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine, "alice")
    expire_lease(engine, job.id)
    with reading(engine) as session:
        leases = other_leases.leases_of_others(session, "bob")
    assert [(lease.job_id, lease.owner, lease.is_expired) for lease in leases] == [(job.id, "alice", True)]
    with transaction(engine) as session:
        job_queue.renew(session, "alice", lease_s=LEASE_S)
    with transaction(engine) as session:
        assert job_queue.reap(session, leases) == []
    assert row(engine, job.id).owner == "alice"


def test_a_reap_on_postgresql_waits_for_no_lease_that_its_owner_is_renewing(postgres_engine: Engine) -> None:
    submit(postgres_engine)
    job = claimed(postgres_engine, "alice")
    expire_lease(postgres_engine, job.id)
    with reading(postgres_engine) as session:
        leases = other_leases.leases_of_others(session, "bob")
    with transaction(postgres_engine) as owner:
        job_queue.renew(owner, "alice", lease_s=LEASE_S)
        with transaction(postgres_engine) as session:
            session.execute(text("SET LOCAL lock_timeout = '5s'"))
            assert job_queue.reap(session, leases) == []


def test_a_lease_of_another_claim_of_the_job_is_not_reaped(engine: Engine) -> None:
    submit(engine)
    expire_lease(engine, claimed(engine, "alice").id)
    with reading(engine) as session:
        leases = other_leases.leases_of_others(session, "bob")
    reap(engine)
    job = claimed(engine, "alice")
    with transaction(engine) as session:
        session.execute(update(Job).values(lease_until=leases[0].lease_until))
        assert job_queue.reap(session, leases) == []
    assert row(engine, job.id).epoch == job.epoch


def test_a_sole_owner_reaps_every_other_owner_at_once(engine: Engine) -> None:
    for _ in range(3):
        submit(engine)
    finish(engine, claimed(engine, "before the restart"))
    dead, own = claimed(engine, "before the restart"), claimed(engine, "me")
    assert reap(engine, all_owners_except="me") == [(dead.id, JobStatus.PENDING)]
    job = row(engine, dead.id)
    assert (job.owner, job.lease_until, job.crashes, job.epoch) == (None, None, 1, dead.epoch + 1)
    assert (job.error_code, job.error_message, job.finished_at, job.report_state) == (None, None, None, "none")
    assert row(engine, own.id).status == "processing"


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


def test_a_job_that_ran_at_two_crashes_runs_alone_so_that_no_other_job_is_quarantined(engine: Engine) -> None:
    on_probation, other = submit(engine, age=1), submit(engine, age=2)
    for _ in range(2):
        for _ in ("on_probation", "other"):
            claimed(engine, "a")
        reap(engine, all_owners_except="nobody")
    fresh = submit(engine, age=0)
    assert claimed(engine, "b").id == fresh
    assert claim(engine, "b") is None, "it waits until no other job of the node runs"
    assert claimed(engine, "c").id == on_probation, "on another node no job runs"
    assert claim(engine, "c") is None, "and no other job starts while it runs"
    assert reap(engine, all_owners_except="b") == [(on_probation, JobStatus.FAILED)]
    assert row(engine, other).crashes == 2


@pytest.mark.parametrize("end", ["finished", "cancelled", "quarantined"])
def test_a_local_job_is_never_reported(engine: Engine, end: str) -> None:
    job_id = submit(engine, is_local=True)
    if end == "cancelled":
        with transaction(engine) as session:
            job_queue.request_cancel(session, job_id)
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
    with reading(engine) as session:
        assert outbox.due_reports(session, 10) == []


def test_release_all_ends_the_leases_and_counts_no_crash(engine: Engine) -> None:
    for _ in range(3):
        submit(engine)
    mine = [claimed(engine, "alice").id for _ in range(2)]
    others = claimed(engine, "bob").id
    with transaction(engine) as session:
        assert job_queue.release_all(session, "alice") == 2
    released = [row(engine, job_id) for job_id in mine]
    assert {(job.status, job.owner, job.crashes, job.lease_until) for job in released} == {("pending", None, 0, None)}
    assert {job.epoch for job in released} == {2}
    assert row(engine, others).status == "processing"


def test_release_all_leaves_the_running_jobs_to_their_owner(engine: Engine) -> None:
    for _ in range(2):
        submit(engine)
    running, waiting = claimed(engine, "alice"), claimed(engine, "alice")
    with transaction(engine) as session:
        assert job_queue.release_all(session, "alice", running_job_ids=[running.id]) == 1
    assert (row(engine, running.id).status, row(engine, waiting.id).status) == ("processing", "pending")


def test_release_gives_one_job_back_and_counts_a_crash(engine: Engine) -> None:
    for age in (1, 2):
        submit(engine, age=age)
    unowned, other = claimed(engine, "alice"), claimed(engine, "alice")
    with transaction(engine) as session:
        assert not job_queue.release(session, unowned.id, "bob")
        assert job_queue.release(session, unowned.id, "alice") is JobStatus.PENDING
        assert not job_queue.release(session, unowned.id, "alice")
    job = row(engine, unowned.id)
    assert (job.status, job.owner, job.crashes, job.epoch) == ("pending", None, 1, unowned.epoch + 1)
    assert row(engine, other.id).status == "processing"


def test_a_release_of_a_job_that_is_not_to_blame_counts_neither_a_crash_nor_an_attempt(engine: Engine) -> None:
    submit(engine)
    first = claimed(engine, "alice")
    with transaction(engine) as session:
        assert job_queue.release(session, first.id, "bob", counts_as_crash=False) is None
        assert job_queue.release(session, first.id + 1, "alice", counts_as_crash=False) is None
        assert job_queue.release(session, first.id, "alice", counts_as_crash=False) is JobStatus.PENDING
        assert not job_queue.release(session, first.id, "alice", counts_as_crash=False)
    second = claimed(engine, "bob")
    assert (second.id, second.attempt, second.crashes, second.epoch) == (first.id, first.attempt, 0, first.epoch + 2)


def test_a_job_that_is_released_again_and_again_is_quarantined(engine: Engine) -> None:
    submit(engine)
    statuses = []
    for _ in range(MAX_CRASHES):
        job = claimed(engine, "alice")
        with transaction(engine) as session:
            statuses.append(job_queue.release(session, job.id, "alice"))
    assert statuses == [JobStatus.PENDING] * (MAX_CRASHES - 1) + [JobStatus.FAILED]
    assert (row(engine, job.id).error_code, row(engine, job.id).report_state) == ("QUARANTINED", "due")


def test_a_cancel_request_survives_a_crash_of_the_owner(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        job_queue.request_cancel(session, job.id)
    reap(engine, all_owners_except="the next one")
    assert claimed(engine).cancel_requested


# --- cancel and retry ------------------------------------------------------------------------------------------------


def test_cancelling_a_pending_job_fails_it_at_once(engine: Engine) -> None:
    job_id = submit(engine)
    with transaction(engine) as session:
        assert job_queue.request_cancel(session, job_id) is JobStatus.FAILED
    job = row(engine, job_id)
    assert (job.status, job.error_code, job.report_state) == ("failed", "CANCELLED", "due")
    assert (job.error_message, job.epoch) == ("CANCELLED: cancelled by the operator", 1)
    assert job.finished_at is not None
    assert claim(engine) is None


def test_cancelling_and_retrying_change_one_job(engine: Engine) -> None:
    wanted, other = submit(engine, age=1), submit(engine, age=2)
    for _ in range(2):
        requeue(engine, claimed(engine), backoff_s=3600)
    before = columns_of(engine, other)
    with transaction(engine) as session:
        assert job_queue.retry_now(session, wanted) == "attempt"
        assert job_queue.request_cancel(session, wanted) is JobStatus.FAILED
    assert columns_of(engine, other) == before


def test_cancelling_a_running_job_requests_it_of_the_owner(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        assert job_queue.request_cancel(session, job.id) is JobStatus.PROCESSING
    assert (row(engine, job.id).status, row(engine, job.id).cancel_requested) == ("processing", True)


def test_cancelling_an_ended_or_unknown_job_changes_nothing(engine: Engine) -> None:
    job_id = ended(engine)
    before = columns_of(engine, job_id)
    with transaction(engine) as session:
        assert job_queue.request_cancel(session, job_id) is None
        assert job_queue.request_cancel(session, job_id + 1) is None
    assert columns_of(engine, job_id) == before


def test_a_retry_ends_the_backoff_of_an_attempt_or_of_a_report(engine: Engine) -> None:
    waiting = submit(engine)
    requeue(engine, claimed(engine), backoff_s=3600)
    with transaction(engine) as session:
        assert job_queue.retry_now(session, waiting) == "attempt"
    job = claimed(engine)
    with transaction(engine) as session:
        assert job_queue.retry_now(session, job.id) == ""
    finish(engine, job)
    with transaction(engine) as session:
        outbox.postpone_report(session, job.id, backoff_s=3600, note="")
        assert job_queue.retry_now(session, job.id) == "report"
    assert due(engine) == [job.id]
    with transaction(engine) as session:
        outbox.note_reported(session, job.id, ReportState.REPORTED)
        assert job_queue.retry_now(session, job.id) == "report"
    assert due(engine) == [job.id]


@pytest.mark.parametrize("state", [ReportState.ABANDONED, ReportState.LOCAL])
def test_a_result_that_fulcrumcore_does_not_expect_is_not_sent_by_a_retry(engine: Engine, state: ReportState) -> None:
    job_id = ended(engine)
    with transaction(engine) as session:
        outbox.note_reported(session, job_id, state)
        assert job_queue.retry_now(session, job_id) == ""
    assert due(engine) == []


def test_a_retry_of_a_job_that_another_executor_has_claimed_gives_it_a_new_attempt(engine: Engine) -> None:
    wanted, other = (submit(engine, is_claimed_elsewhere=True) for _ in range(2))
    before = columns_of(engine, other)
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id == wanted).values(claimed_at=db_now(), operator_detail="x"))
        assert job_queue.retry_now(session, wanted) == "attempt"
    job = row(engine, wanted)
    assert (job.status, job.report_state, job.epoch, job.finished_at) == ("pending", "none", 1, None)
    assert (job.error_code, job.error_message, job.operator_detail, job.claimed_at) == (None, None, None, None)
    assert job.claim_sent_at is not None, "the worker reads the job at FulcrumCore before it sends a claim"
    assert columns_of(engine, other) == before


# --- reopen -----------------------------------------------------------------------------------------------------------


def reopen(engine: Engine, *job_ids: int, are_claimed: bool = True, now_at_core: datetime | None = None) -> int:
    fulcrum_ids = [row(engine, job_id).fulcrum_id for job_id in job_ids]
    with transaction(engine) as session:
        return job_queue.reopen(session, fulcrum_ids, are_claimed=are_claimed, now_at_core=now_at_core or utc_now())


def settled(engine: Engine, state: ReportState, result: JobResult = BROKEN, *, was_started: bool = True) -> int:
    """End a job whose report has the state; return its id. Each column that another attempt clears has a value."""
    job_id = submit(engine, deadline_at=utc_now())
    job = claimed(engine)
    with transaction(engine) as session:
        lease = job_queue.lease_of(job)
        job_queue.note_fulcrum_claim_sent(session, lease)
        job_queue.note_fulcrum_claim_accepted(session, lease)
        if was_started:
            job_queue.note_started(session, lease, run_ident=f"run-{job_id}", playbook="create.yml")
        job_queue.finish(session, lease, result)
        outbox.postpone_report(session, job_id, backoff_s=60, note="HTTP 503")
        outbox.note_reported(session, job_id, state)
        past = {"report_after": db_now(60), "lease_until": db_now(60), "available_at": db_now(60)}
        session.execute(update(Job).where(Job.id == job_id).values(claimed_at=LONG_AGO, operator_detail="x", **past))
    return job_id


def result_with(code: ErrorCode) -> JobResult:
    return JobResult(succeeded=False, code=code, detail="x")


@pytest.mark.parametrize("are_claimed", [True, False])
@pytest.mark.parametrize(
    ("state", "result", "was_started"),
    [
        (ReportState.REPORTED, BROKEN, True),
        (ReportState.OVERTAKEN, BROKEN, True),
        (ReportState.REPORTED, BROKEN, False),
        (ReportState.REPORTED, result_with(ErrorCode.JOB_GONE), False),
        (ReportState.ABANDONED, BROKEN, True),
        (ReportState.ABANDONED, DONE, True),
    ],
)
def test_a_result_that_fulcrumcore_has_lost_is_due_again(
    engine: Engine, state: ReportState, result: JobResult, was_started: bool, are_claimed: bool
) -> None:
    job_id = settled(engine, state, result, was_started=was_started)
    before = columns_of(engine, job_id)
    assert reopen(engine, job_id, are_claimed=are_claimed) == 1
    report_columns = {"report_state": "due", "report_after": None, "report_attempts": 0, "reported_at": None}
    assert columns_of(engine, job_id) == before | report_columns


@pytest.mark.parametrize("are_claimed", [True, False])
@pytest.mark.parametrize(
    ("result", "was_started"),
    [
        (BROKEN, False),
        (DONE, False),
        (result_with(ErrorCode.JOB_GONE), True),
        (result_with(ErrorCode.JOB_GONE), False),
    ],
)
def test_an_abandoned_job_without_a_result_gets_another_attempt(
    engine: Engine, result: JobResult, was_started: bool, are_claimed: bool
) -> None:
    job_id = settled(engine, ReportState.ABANDONED, result, was_started=was_started)
    before = columns_of(engine, job_id)
    assert reopen(engine, job_id, are_claimed=are_claimed) == 1
    after = columns_of(engine, job_id)
    cleared = dict.fromkeys(
        ["finished_at", "error_code", "error_message", "operator_detail", "owner", "lease_until", "available_at"]
    )
    changed = cleared | {"status": "pending", "report_state": "none", "epoch": before["epoch"] + 1}
    assert after == before | changed | {"claimed_at": after["claimed_at"]}
    assert (after["claimed_at"] is not None) is are_claimed
    assert after["claimed_at"] != LONG_AGO


@pytest.mark.parametrize("are_claimed", [True, False])
def test_only_ended_jobs_that_fulcrumcore_lists_continue(engine: Engine, are_claimed: bool) -> None:
    reported = settled(engine, ReportState.REPORTED)
    abandoned = settled(engine, ReportState.ABANDONED, was_started=False)
    is_due, local, listed = ended(engine), ended(engine, is_local=True), settled(engine, ReportState.REPORTED)
    others = {job_id: columns_of(engine, job_id) for job_id in (reported, abandoned, is_due, local)}
    assert reopen(engine, listed, is_due, local, are_claimed=are_claimed) == 1
    assert {job_id: columns_of(engine, job_id) for job_id in others} == others


@pytest.mark.parametrize("state", [ReportState.CLAIMED_ELSEWHERE, ReportState.ABANDONED])
def test_a_job_of_another_executor_gets_an_attempt_when_it_is_pending_at_fulcrumcore(
    engine: Engine, state: ReportState
) -> None:
    job_id = settled(engine, state, result_with(ErrorCode.JOB_CLAIMED_ELSEWHERE))
    assert reopen(engine, job_id, are_claimed=False) == 1
    job = row(engine, job_id)
    assert (job.status, job.report_state, job.claim_sent_at, job.claimed_at) == ("pending", "none", None, None)


@pytest.mark.parametrize("was_started", [True, False])
@pytest.mark.parametrize("state", [ReportState.CLAIMED_ELSEWHERE, ReportState.ABANDONED])
def test_the_failure_of_a_job_of_another_executor_is_reported_after_its_deadline(
    engine: Engine, state: ReportState, was_started: bool
) -> None:
    job_id = settled(engine, state, result_with(ErrorCode.JOB_CLAIMED_ELSEWHERE), was_started=was_started)
    deadline_at = row(engine, job_id).deadline_at
    delay = job_queue.MAX_REPORT_DELAY
    assert reopen(engine, job_id, now_at_core=deadline_at + delay - timedelta(seconds=1)) == 0
    assert row(engine, job_id).report_state == state
    assert reopen(engine, job_id, now_at_core=deadline_at + delay + timedelta(seconds=1)) == 1
    assert (row(engine, job_id).status, row(engine, job_id).report_state) == ("failed", "due")


# --- prune ------------------------------------------------------------------------------------------------------------


def prune(engine: Engine, limit: int = 100, in_s: float = 60) -> tuple[int, list[str]]:
    with transaction(engine) as session:
        return job_queue.prune(session, ended_before=utc_now() + timedelta(seconds=in_s), limit=limit)


def test_a_job_with_a_due_report_is_not_pruned(engine: Engine) -> None:
    job_id = ended(engine)
    assert prune(engine) == (0, [])
    settle(engine, job_id)
    assert prune(engine) == (1, [])


def test_a_job_that_another_executor_processes_is_not_pruned(engine: Engine) -> None:
    with transaction(engine) as session:
        job_queue.submit(session, replace(new_job(), is_claimed_elsewhere=True))
    assert prune(engine) == (0, [])
    with transaction(engine) as session:
        outbox.note_claimed_elsewhere(session, [])
    assert prune(engine) == (1, [])


def test_open_and_recently_ended_jobs_are_not_pruned(engine: Engine) -> None:
    job_id = ended(engine)
    settle(engine, job_id)
    submit(engine, age=-999_999)
    submit(engine, age=-999_999)
    claimed(engine)
    assert prune(engine, in_s=-60) == (0, [])
    assert prune(engine) == (1, [])
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 2


def test_pruning_deletes_the_oldest_first_up_to_the_limit(engine: Engine) -> None:
    job_ids = [ended(engine) for _ in range(5)]
    settle(engine, *job_ids)
    assert [prune(engine, limit=2)[0] for _ in range(4)] == [2, 2, 1, 0]


def test_the_job_that_ended_first_is_pruned_first(engine: Engine) -> None:
    first, second = ended(engine), ended(engine)
    settle(engine, first, second)
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id == second).values(finished_at=LONG_AGO))
    assert prune(engine, limit=1) == (1, [])
    with reading(engine) as session:
        assert session.scalars(select(Job.id)).all() == [first]


def test_pruning_deletes_the_runs_and_returns_their_idents(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        for ident in ("create-1", "create-2"):
            job_queue.note_started(session, job_queue.lease_of(job), run_ident=ident, playbook="create.yml")
    finish(engine, job)
    settle(engine, job.id)
    submit(engine)
    lease = job_queue.lease_of(claimed(engine))
    with transaction(engine) as session:
        job_queue.note_started(session, lease, run_ident="kept-1", playbook="create.yml")
    count, idents = prune(engine)
    assert (count, sorted(idents)) == (1, ["create-1", "create-2"])
    with reading(engine) as session:
        assert session.scalars(select(Run.ident)).all() == ["kept-1"]
