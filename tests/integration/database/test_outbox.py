"""The reports that are due, on SQLite and on PostgreSQL.

On a shared database, an agent claims reports before it sends them, so that no other agent sends them until the claim
ends. A report is settled if it is not sent any more.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine, update
from support.databases import LONG_AGO, row, submit
from support.job_steps import BROKEN, claimed, columns_of, due, ended, finish

from executor.database import outbox, reopening
from executor.database.engine import transaction
from executor.database.statements import MAX_BACKOFF_S
from executor.database.tables.jobs import Job
from executor.database.times import db_now
from executor.fulcrum.responses import MAX_RETRY_AFTER_S
from executor.model import JobResult, ReportState
from executor.shared.error_codes import ErrorCode


def test_due_reports_are_ordered_by_the_jobs_end(engine: Engine) -> None:
    submit(engine)
    first, second, third = (ended(engine, priority=5) for _ in range(3))
    assert due(engine) == [first, second, third]
    assert due(engine, limit=2) == [first, second]
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id == third).values(finished_at=LONG_AGO))
        session.execute(update(Job).where(Job.id != third).values(finished_at=LONG_AGO + timedelta(seconds=1)))
    assert due(engine) == [third, first, second]


def claim(engine: Engine, limit: int = 50, claim_duration_s: float = 60.0) -> list[int]:
    """Claim due reports; return the ids of their jobs."""
    with transaction(engine) as session:
        return [job.id for job in outbox.claim_due_reports(session, limit, claim_duration_s=claim_duration_s)]


def let_claims_expire(engine: Engine) -> None:
    with transaction(engine) as session:
        session.execute(update(Job).values(report_claimed_until=db_now(-1)))


def test_claimed_reports_are_not_due_for_other_agents(engine: Engine) -> None:
    first, second, third = (ended(engine) for _ in range(3))
    with transaction(engine) as session:
        claimed_jobs = outbox.claim_due_reports(session, 2, claim_duration_s=60)
    assert [job.id for job in claimed_jobs] == [first, second]
    with transaction(engine) as session:
        claimed_jobs = [*claimed_jobs, *outbox.claim_due_reports(session, 50, claim_duration_s=60)]
    assert claimed_jobs[-1].id == third
    assert (claim(engine), due(engine)) == ([], [])
    with transaction(engine) as session:
        outbox.set_report_state(session, first, ReportState.REPORTED)
        outbox.postpone_report(session, second, backoff_s=0, note="HTTP 500")
    assert due(engine) == [second], "a postponed report is no longer claimed"
    with transaction(engine) as session:
        outbox.release_reports(session, claimed_jobs)
    assert claim(engine) == [second, third]
    assert row(engine, first).report_claimed_until is None


def test_the_reports_of_an_agent_that_was_killed_are_due_again_when_its_claim_has_expired(engine: Engine) -> None:
    job_id = ended(engine)
    assert claim(engine) == [job_id]
    with transaction(engine) as session:
        assert outbox.end_report_backoffs(session) == 0
    assert due(engine) == [], "ending the backoffs, as after an outage, does not end a claim"
    let_claims_expire(engine)
    assert claim(engine) == [job_id]


def test_an_agent_that_was_suspended_does_not_release_the_reports_that_another_one_has_claimed(engine: Engine) -> None:
    """Otherwise a third agent would claim these reports and send them a second time."""
    ended(engine)
    with transaction(engine) as session:
        claimed_jobs = outbox.claim_due_reports(session, 50, claim_duration_s=60)
    let_claims_expire(engine)
    assert len(claim(engine)) == 1
    with transaction(engine) as session:
        outbox.release_reports(session, claimed_jobs)
    assert claim(engine) == []


def test_an_answer_about_an_earlier_result_does_not_change_the_present_one(engine: Engine) -> None:
    """While the agent that sends the report was suspended, FulcrumCore has listed the job as open again."""
    job_id = ended(engine)
    earlier_epoch = row(engine, job_id).epoch
    with transaction(engine) as session:
        session.execute(update(Job).values(epoch=Job.epoch + 1))
    before = columns_of(engine, job_id)
    with transaction(engine) as session:
        outbox.set_report_state(session, job_id, ReportState.REPORTED, epoch=earlier_epoch)
        outbox.postpone_report(session, job_id, backoff_s=60, note="HTTP 500", epoch=earlier_epoch)
        outbox.replace_result(session, job_id, BROKEN, epoch=earlier_epoch)
    assert columns_of(engine, job_id) == before
    with transaction(engine) as session:
        outbox.set_report_state(session, job_id, ReportState.REPORTED, epoch=earlier_epoch + 1)
    assert row(engine, job_id).report_state == ReportState.REPORTED


def test_a_retried_report_is_not_due_while_an_agent_is_sending_it(engine: Engine) -> None:
    job_id = ended(engine)
    assert claim(engine) == [job_id]
    with transaction(engine) as session:
        assert reopening.retry_now(session, job_id) == "report"
    assert due(engine) == [], "an agent is sending the report"


def test_agents_that_claim_at_the_same_time_get_different_reports(postgres_engine: Engine) -> None:
    job_ids = [ended(postgres_engine) for _ in range(4)]
    with transaction(postgres_engine) as one, transaction(postgres_engine) as other:
        ones = [job.id for job in outbox.claim_due_reports(one, 2, claim_duration_s=60)]
        others = [job.id for job in outbox.claim_due_reports(other, 10, claim_duration_s=60)]
    assert (ones, others) == (job_ids[:2], job_ids[2:])


def test_a_postponed_report_is_not_due_until_its_backoff_is_ended(engine: Engine) -> None:
    job_id = ended(engine)
    with transaction(engine) as session:
        outbox.postpone_report(session, job_id, backoff_s=3600, note="HTTP 503")
    assert due(engine) == []
    with transaction(engine) as session:
        assert outbox.end_report_backoffs(session) == 1
        assert outbox.end_report_backoffs(session) == 0
    job = row(engine, job_id)
    assert (due(engine), job.report_attempts, job.report_note) == ([job_id], 1, "HTTP 503")


def test_after_the_clock_was_set_back_a_report_in_backoff_is_due(engine: Engine) -> None:
    """Then `report_after` is later than any backoff can end, so it is ignored."""
    job_id = ended(engine)
    with transaction(engine) as session:
        outbox.postpone_report(session, job_id, backoff_s=86_400, note="HTTP 503")
    assert due(engine) == [], "a backoff above the maximum is shortened to it"
    with transaction(engine) as session:
        session.execute(update(Job).values(report_after=db_now(MAX_BACKOFF_S + 10)))
    assert due(engine) == [job_id]


def test_the_maximum_backoff_is_not_shorter_than_the_maximum_wait_that_fulcrumcore_may_request() -> None:
    assert MAX_RETRY_AFTER_S <= MAX_BACKOFF_S


def test_ending_the_backoffs_changes_no_settled_report_and_a_retry_changes_one_report(engine: Engine) -> None:
    job_ids = [ended(engine) for _ in range(3)]
    with transaction(engine) as session:
        for job_id in job_ids:
            outbox.postpone_report(session, job_id, backoff_s=3600, note="HTTP 503")
        session.execute(update(Job).where(Job.id == job_ids[2]).values(report_state=ReportState.ENDED_BY_FULCRUM))
        assert reopening.retry_now(session, job_ids[0]) == "report"
    assert due(engine) == [job_ids[0]]
    with transaction(engine) as session:
        assert outbox.end_report_backoffs(session) == 1
    assert due(engine) == job_ids[:2]


@pytest.mark.parametrize("state", [ReportState.REPORTED, ReportState.ENDED_BY_FULCRUM, ReportState.ABANDONED])
def test_a_settled_report_does_not_change(engine: Engine, state: ReportState) -> None:
    job_id = ended(engine)
    with transaction(engine) as session:
        outbox.set_report_state(session, job_id, state, "first note")
    settled = columns_of(engine, job_id)
    with transaction(engine) as session:
        outbox.set_report_state(session, job_id, ReportState.ENDED_BY_FULCRUM, "second note")
        outbox.postpone_report(session, job_id, backoff_s=1, note="late")
        outbox.replace_result(session, job_id, BROKEN)
        assert outbox.end_report_backoffs(session) == 0
    assert columns_of(engine, job_id) == settled
    assert (settled["report_state"], settled["report_note"], due(engine)) == (state, "first note", [])


def test_the_acknowledgement_of_a_report_ends_its_backoff_and_has_no_note_by_default(engine: Engine) -> None:
    job_id, other = ended(engine), ended(engine)
    with transaction(engine) as session:
        outbox.postpone_report(session, job_id, backoff_s=60, note="HTTP 503")
        outbox.set_report_state(session, job_id, ReportState.REPORTED)
    job = row(engine, job_id)
    assert (job.report_state, job.report_note, job.report_after) == ("reported", None, None)
    assert job.reported_at is not None
    assert due(engine) == [other]


def test_jobs_of_another_executor_are_claimed_elsewhere_while_fulcrumcore_lists_them_and_abandoned_afterwards(
    engine: Engine,
) -> None:
    elsewhere = JobResult(succeeded=False, code=ErrorCode.JOB_CLAIMED_ELSEWHERE, detail="400")
    job_ids: dict[str, int] = {}
    for state in (ReportState.CLAIMED_ELSEWHERE, ReportState.ABANDONED):
        for listing in ("listed", "unlisted"):
            job_ids[f"{state} {listing}"] = _end_and_settle(engine, elsewhere, state)
    job_ids["other code"] = _end_and_settle(engine, BROKEN, ReportState.ABANDONED)
    job_ids["reported"] = _end_and_settle(engine, elsewhere, ReportState.REPORTED)
    listed = [row(engine, job_id).fulcrum_id for name, job_id in job_ids.items() if not name.endswith("unlisted")]
    with transaction(engine) as session:
        outbox.update_jobs_claimed_elsewhere(session, listed)
    assert {name: row(engine, job_id).report_state for name, job_id in job_ids.items()} == {
        "claimed_elsewhere listed": "claimed_elsewhere",
        "claimed_elsewhere unlisted": "abandoned",
        "abandoned listed": "claimed_elsewhere",
        "abandoned unlisted": "abandoned",
        "other code": "abandoned",
        "reported": "reported",
    }


def _end_and_settle(engine: Engine, result: JobResult, state: ReportState) -> int:
    submit(engine)
    job = claimed(engine)
    finish(engine, job, result)
    with transaction(engine) as session:
        outbox.set_report_state(session, job.id, state)
    return job.id


def test_a_refused_completion_becomes_a_failure_while_its_report_is_due(engine: Engine) -> None:
    job_id, other = ended(engine), ended(engine)
    with transaction(engine) as session:
        outbox.replace_result(session, job_id, BROKEN)
    assert row(engine, other).status == "completed"
    job = row(engine, job_id)
    assert (job.status, job.error_code, job.error_message) == ("failed", "CAPACITY", "CAPACITY: no space")
    assert due(engine) == [job_id, other]


def test_a_job_that_has_not_ended_has_no_report(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        outbox.set_report_state(session, job.id, ReportState.REPORTED)
        outbox.replace_result(session, job.id, BROKEN)
    after = row(engine, job.id)
    assert (after.report_state, after.status, due(engine)) == ("none", "processing", [])
