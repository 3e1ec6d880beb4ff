"""The job queue: cancelled, retried, reopened and pruned jobs.

A job is reopened when FulcrumCore lists it as open although it has ended here: its result is reported again, or it gets
another attempt.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, func, select, update
from support.databases import LONG_AGO, new_job, row, submit
from support.job_steps import (
    BROKEN,
    DONE,
    claim,
    claimed,
    columns_of,
    due,
    ended,
    finish,
    requeue,
    settle,
)

from executor.database import job_queue, job_runs, outbox, reopening
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job, Run
from executor.database.times import db_now, utc_now
from executor.model import JobResult, JobStatus, ReportState
from executor.shared.error_codes import ErrorCode


def test_cancelling_a_pending_job_fails_it_at_once(engine: Engine) -> None:
    job_id = submit(engine)
    with transaction(engine) as session:
        assert job_queue.cancel_or_request_cancel(session, job_id) is JobStatus.FAILED
    job = row(engine, job_id)
    assert (job.status, job.error_code, job.report_state) == ("failed", "CANCELLED", "due")
    assert (job.error_message, job.epoch) == ("CANCELLED: cancelled by the operator", 1)
    assert job.finished_at is not None
    assert claim(engine) is None


def test_cancelling_or_retrying_a_job_does_not_change_other_jobs(engine: Engine) -> None:
    changed_job_id, unchanged_job_id = submit(engine, age=1), submit(engine, age=2)
    for _ in range(2):
        requeue(engine, claimed(engine), backoff_s=3600)
    before = columns_of(engine, unchanged_job_id)
    with transaction(engine) as session:
        assert reopening.retry_now(session, changed_job_id) == "attempt"
        assert job_queue.cancel_or_request_cancel(session, changed_job_id) is JobStatus.FAILED
    assert columns_of(engine, unchanged_job_id) == before


def test_cancelling_a_running_job_requests_the_cancellation_from_its_owner(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        assert job_queue.cancel_or_request_cancel(session, job.id) is JobStatus.PROCESSING
    assert (row(engine, job.id).status, row(engine, job.id).cancel_requested) == ("processing", True)


def test_cancelling_an_ended_or_unknown_job_changes_nothing(engine: Engine) -> None:
    job_id = ended(engine)
    before = columns_of(engine, job_id)
    with transaction(engine) as session:
        assert job_queue.cancel_or_request_cancel(session, job_id) is None
        assert job_queue.cancel_or_request_cancel(session, job_id + 1) is None
    assert columns_of(engine, job_id) == before


def test_a_retry_ends_the_backoff_of_an_attempt_or_of_a_report(engine: Engine) -> None:
    waiting = submit(engine)
    requeue(engine, claimed(engine), backoff_s=3600)
    with transaction(engine) as session:
        assert reopening.retry_now(session, waiting) == "attempt"
    job = claimed(engine)
    with transaction(engine) as session:
        assert reopening.retry_now(session, job.id) == ""
    finish(engine, job)
    with transaction(engine) as session:
        outbox.postpone_report(session, job.id, backoff_s=3600, note="")
        assert reopening.retry_now(session, job.id) == "report"
    assert due(engine) == [job.id]
    with transaction(engine) as session:
        outbox.set_report_state(session, job.id, ReportState.REPORTED)
        assert reopening.retry_now(session, job.id) == "report"
    assert due(engine) == [job.id]


@pytest.mark.parametrize("state", [ReportState.ABANDONED, ReportState.LOCAL])
def test_a_result_that_fulcrumcore_does_not_expect_is_not_sent_by_a_retry(engine: Engine, state: ReportState) -> None:
    job_id = ended(engine)
    with transaction(engine) as session:
        outbox.set_report_state(session, job_id, state)
        assert reopening.retry_now(session, job_id) == ""
    assert due(engine) == []


def test_a_retry_of_a_job_that_another_executor_has_claimed_gives_it_a_new_attempt(engine: Engine) -> None:
    changed_job_id, unchanged_job_id = (submit(engine, is_claimed_elsewhere=True) for _ in range(2))
    before = columns_of(engine, unchanged_job_id)
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id == changed_job_id).values(claimed_at=db_now(), operator_detail="x"))
        assert reopening.retry_now(session, changed_job_id) == "attempt"
    job = row(engine, changed_job_id)
    assert (job.status, job.report_state, job.epoch, job.finished_at) == ("pending", "none", 1, None)
    assert (job.error_code, job.error_message, job.operator_detail, job.claimed_at) == (None, None, None, None)
    assert job.claim_sent_at is not None, "the worker reads the job at FulcrumCore before it sends a claim"
    assert columns_of(engine, unchanged_job_id) == before


def reopen(
    engine: Engine, *job_ids: int, are_claimed_at_fulcrum: bool = True, now_at_fulcrum: datetime | None = None
) -> int:
    fulcrum_ids = [row(engine, job_id).fulcrum_id for job_id in job_ids]
    with transaction(engine) as session:
        return reopening.reopen(
            session,
            fulcrum_ids,
            are_claimed_at_fulcrum=are_claimed_at_fulcrum,
            now_at_fulcrum=now_at_fulcrum or utc_now(),
        )


def store_settled_job(
    engine: Engine, state: ReportState, result: JobResult = BROKEN, *, was_started: bool = True
) -> int:
    """Store an ended job with this report state; return its id. Each column that a new attempt clears has a value."""
    job_id = submit(engine, deadline_at=utc_now())
    job = claimed(engine)
    with transaction(engine) as session:
        lease = job_queue.lease_of(job)
        job_queue.store_fulcrum_claim_sent(session, lease)
        job_queue.store_fulcrum_claim_accepted(session, lease)
        if was_started:
            job_runs.store_run_start(session, lease, run_ident=f"run-{job_id}", playbook="create.yml")
        job_queue.finish(session, lease, result)
        outbox.postpone_report(session, job_id, backoff_s=60, note="HTTP 503")
        outbox.set_report_state(session, job_id, state)
        times = {"report_after": db_now(60), "lease_until": db_now(60), "available_at": db_now(60)}
        session.execute(update(Job).where(Job.id == job_id).values(claimed_at=LONG_AGO, operator_detail="x", **times))
    return job_id


def failure_with(code: ErrorCode) -> JobResult:
    return JobResult(succeeded=False, code=code, detail="x")


@pytest.mark.parametrize("are_claimed_at_fulcrum", [True, False])
@pytest.mark.parametrize(
    ("state", "result", "was_started"),
    [
        (ReportState.REPORTED, BROKEN, True),
        (ReportState.ENDED_BY_FULCRUM, BROKEN, True),
        (ReportState.REPORTED, BROKEN, False),
        (ReportState.REPORTED, failure_with(ErrorCode.JOB_GONE), False),
        (ReportState.ABANDONED, BROKEN, True),
        (ReportState.ABANDONED, DONE, True),
    ],
)
def test_the_report_of_a_result_is_due_again_when_fulcrumcore_lists_the_job_as_open(
    engine: Engine, state: ReportState, result: JobResult, was_started: bool, are_claimed_at_fulcrum: bool
) -> None:
    job_id = store_settled_job(engine, state, result, was_started=was_started)
    before = columns_of(engine, job_id)
    assert reopen(engine, job_id, are_claimed_at_fulcrum=are_claimed_at_fulcrum) == 1
    report_columns = {"report_state": "due", "report_after": None, "report_attempts": 0, "reported_at": None}
    assert columns_of(engine, job_id) == before | report_columns


@pytest.mark.parametrize("are_claimed_at_fulcrum", [True, False])
@pytest.mark.parametrize(
    ("result", "was_started"),
    [
        (BROKEN, False),
        (DONE, False),
        (failure_with(ErrorCode.JOB_GONE), True),
        (failure_with(ErrorCode.JOB_GONE), False),
    ],
)
def test_an_abandoned_job_without_a_result_of_a_run_gets_another_attempt(
    engine: Engine, result: JobResult, was_started: bool, are_claimed_at_fulcrum: bool
) -> None:
    job_id = store_settled_job(engine, ReportState.ABANDONED, result, was_started=was_started)
    before = columns_of(engine, job_id)
    assert reopen(engine, job_id, are_claimed_at_fulcrum=are_claimed_at_fulcrum) == 1
    after = columns_of(engine, job_id)
    cleared = dict.fromkeys(
        ["finished_at", "error_code", "error_message", "operator_detail", "owner", "lease_until", "available_at"]
    )
    changed = cleared | {"status": "pending", "report_state": "none", "epoch": before["epoch"] + 1}
    assert after == before | changed | {"claimed_at": after["claimed_at"]}
    assert (after["claimed_at"] is not None) is are_claimed_at_fulcrum
    assert after["claimed_at"] != LONG_AGO


@pytest.mark.parametrize("are_claimed_at_fulcrum", [True, False])
def test_only_jobs_that_fulcrumcore_lists_as_open_and_that_have_no_due_report_are_reopened(
    engine: Engine, are_claimed_at_fulcrum: bool
) -> None:
    reported = store_settled_job(engine, ReportState.REPORTED)
    abandoned = store_settled_job(engine, ReportState.ABANDONED, was_started=False)
    is_due, local, listed = ended(engine), ended(engine, is_local=True), store_settled_job(engine, ReportState.REPORTED)
    others = {job_id: columns_of(engine, job_id) for job_id in (reported, abandoned, is_due, local)}
    assert reopen(engine, listed, is_due, local, are_claimed_at_fulcrum=are_claimed_at_fulcrum) == 1
    assert {job_id: columns_of(engine, job_id) for job_id in others} == others


@pytest.mark.parametrize("state", [ReportState.CLAIMED_ELSEWHERE, ReportState.ABANDONED])
def test_a_job_of_another_executor_gets_an_attempt_when_it_is_pending_at_fulcrumcore(
    engine: Engine, state: ReportState
) -> None:
    job_id = store_settled_job(engine, state, failure_with(ErrorCode.JOB_CLAIMED_ELSEWHERE))
    assert reopen(engine, job_id, are_claimed_at_fulcrum=False) == 1
    job = row(engine, job_id)
    assert (job.status, job.report_state, job.claim_sent_at, job.claimed_at) == ("pending", "none", None, None)


@pytest.mark.parametrize("was_started", [True, False])
@pytest.mark.parametrize("state", [ReportState.CLAIMED_ELSEWHERE, ReportState.ABANDONED])
def test_the_failure_of_a_job_of_another_executor_is_reported_after_its_deadline(
    engine: Engine, state: ReportState, was_started: bool
) -> None:
    job_id = store_settled_job(engine, state, failure_with(ErrorCode.JOB_CLAIMED_ELSEWHERE), was_started=was_started)
    deadline_at = row(engine, job_id).deadline_at
    delay = reopening.MAX_REPORT_DELAY
    assert reopen(engine, job_id, now_at_fulcrum=deadline_at + delay - timedelta(seconds=1)) == 0
    assert row(engine, job_id).report_state == state
    assert reopen(engine, job_id, now_at_fulcrum=deadline_at + delay + timedelta(seconds=1)) == 1
    assert (row(engine, job_id).status, row(engine, job_id).report_state) == ("failed", "due")


def prune(engine: Engine, limit: int = 100, in_s: float = 60) -> tuple[int, list[str]]:
    """Prune jobs that ended before the time `in_s` seconds from now; return their number and their runs' idents."""
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
        outbox.update_jobs_claimed_elsewhere(session, [])
    assert prune(engine) == (1, [])


def test_open_and_recently_ended_jobs_are_not_pruned(engine: Engine) -> None:
    job_id = ended(engine)
    settle(engine, job_id)
    submit(engine, age=-999_999)
    submit(engine, age=-999_999)
    claimed(engine)
    assert prune(engine, in_s=-60) == (0, [])
    assert prune(engine) == (1, [])
    with read_only_session(engine) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 2


def test_pruning_deletes_at_most_as_many_jobs_as_the_limit(engine: Engine) -> None:
    job_ids = [ended(engine) for _ in range(5)]
    settle(engine, *job_ids)
    assert [prune(engine, limit=2)[0] for _ in range(4)] == [2, 2, 1, 0]


def test_the_job_that_ended_first_is_pruned_first(engine: Engine) -> None:
    first, second = ended(engine), ended(engine)
    settle(engine, first, second)
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id == second).values(finished_at=LONG_AGO))
    assert prune(engine, limit=1) == (1, [])
    with read_only_session(engine) as session:
        assert session.scalars(select(Job.id)).all() == [first]


def test_pruning_deletes_the_runs_and_returns_their_idents(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        for ident in ("create-1", "create-2"):
            job_runs.store_run_start(session, job_queue.lease_of(job), run_ident=ident, playbook="create.yml")
    finish(engine, job)
    settle(engine, job.id)
    submit(engine)
    lease = job_queue.lease_of(claimed(engine))
    with transaction(engine) as session:
        job_runs.store_run_start(session, lease, run_ident="kept-1", playbook="create.yml")
    count, idents = prune(engine)
    assert (count, sorted(idents)) == (1, ["create-1", "create-2"])
    with read_only_session(engine) as session:
        assert session.scalars(select(Run.ident)).all() == ["kept-1"]
