"""Claims at FulcrumCore: whether a job is ours after each answer. It is ours if FulcrumCore has accepted our claim."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import structlog
from smith_lab.system import wait_for
from sqlalchemy import update
from support.claims_world import NUMBERS, Claims, poller_of

from executor.agent.claim import FirstRequest, JobNotClaimable, first_request, require_claim_by_this_agent
from executor.agent.refusals import NotCertainlyGone
from executor.agent.reporter import Reporter
from executor.database import job_queue, reopening
from executor.database.engine import transaction
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.errors import FulcrumUnavailable
from executor.model import JobResult, ReportState
from executor.shared.error_codes import ErrorCode


def test_a_job_is_ours_if_its_first_claim_arrives_during_the_second_attempt(claims: Claims) -> None:
    """The first claim gets no answer. FulcrumCore accepts it later, and then answers the second claim with 400."""
    claims.world.sim.add_fault("drop_before", path="/claim$", times=1)
    first = claims.taken()
    with pytest.raises(FulcrumUnavailable):
        claims.claimer().claim(first, job_queue.lease_of(first))
    claims.requeue_without_backoff(first)

    second = claims.taken()
    claims.world.sim.add_fault("delay", path="/claim$", times=1, delay_s=600)
    thread = threading.Thread(target=claims.claimer().claim, args=(second, job_queue.lease_of(second)))
    thread.start()
    wait_for(lambda: len(claims.calls()) == 2, 60, "the second claim")
    assert claims.world.agent.claim(claims.job) == 204  # the first claim arrives now
    claims.world.sim.clear_faults()
    thread.join()

    assert claims.calls() == [None, 400, 204]
    assert claims.row().claimed_at is not None


def test_a_job_that_another_executor_has_claimed_is_not_ours(claims: Claims) -> None:
    job = claims.taken()
    assert claims.world.agent.claim(claims.job) == 204

    with pytest.raises(JobNotClaimable) as caught:
        claims.claimer().claim(job, job_queue.lease_of(job))

    assert caught.value.code is ErrorCode.JOB_CLAIMED_ELSEWHERE
    assert claims.row().claimed_at is None


def test_a_claim_processed_twice_is_answered_with_400_by_the_simulator(claims: Claims) -> None:
    claims.world.sim.add_fault("twice", path="/claim$", times=1)

    assert claims.world.agent.claim(claims.job) == 400
    assert claims.status() == "Processing"


def test_a_deleted_job_is_given_up_after_two_minutes_of_refusals(claims: Claims) -> None:
    claims.world.sim.delete_job(claims.job["id"])
    errors: list[Exception] = []
    for claims.now in (0, 40, 80, 130):
        job = claims.taken()
        with pytest.raises((FulcrumUnavailable, JobNotClaimable)) as caught:
            claims.claimer().claim(job, job_queue.lease_of(job))
        errors.append(caught.value)
        claims.requeue_without_backoff(job)

    assert [type(error) for error in errors] == [NotCertainlyGone] * 3 + [JobNotClaimable]
    assert isinstance(errors[-1], JobNotClaimable)
    assert errors[-1].code is ErrorCode.JOB_GONE
    assert str(errors[-1]) == "the job was deleted in FulcrumCore, or belongs to another agent"
    assert [str(error) for error in errors[:-1]] == [
        "FulcrumCore refused to accept the claim (1 refusals in 0 s); the agent retries",
        "FulcrumCore refused to return the job (2 refusals in 40 s); the agent retries",
        "FulcrumCore refused to return the job (3 refusals in 80 s); the agent retries",
    ]


def test_after_a_job_was_found_to_be_gone_its_refusals_are_counted_from_one_again(claims: Claims) -> None:
    claims.world.sim.delete_job(claims.job["id"])
    results = []
    for claims.now in (0, 40, 80, 130, 170):
        try:
            claims.http_403_counter.require_job_gone(claims.job["id"], refused_request="return the job")
        except NotCertainlyGone as error:
            results.append((error.status, error.retry_after_s, str(error)))
        else:
            results.append("gone")
    text = "FulcrumCore refused to return the job"
    assert results == [
        (500, 30.0, f"{text} (1 refusals in 0 s); the agent retries"),
        (500, 30.0, f"{text} (2 refusals in 40 s); the agent retries"),
        (500, 30.0, f"{text} (3 refusals in 80 s); the agent retries"),
        "gone",
        (500, 30.0, f"{text} (1 refusals in 0 s); the agent retries"),
    ]


def test_a_job_that_can_be_read_is_not_gone_and_its_refusals_are_counted_from_one_again(claims: Claims) -> None:
    def error_at(now: float, **fault: Any) -> str:
        """Let FulcrumCore refuse requests at this time (in seconds); return the error's status and text."""
        claims.now = now
        claims.world.sim.clear_faults()
        claims.world.sim.add_fault("status", status=403, **fault)
        with pytest.raises(FulcrumUnavailable) as caught:
            claims.http_403_counter.require_job_gone(claims.job["id"], refused_request="accept the claim")
        return f"{caught.value.status} {caught.value}"

    not_gone = "500 FulcrumCore refused to accept the claim"
    assert error_at(0, path="/jobs/") == f"{not_gone} (1 refusals in 0 s); the agent retries"
    assert error_at(40, path="/jobs/") == f"{not_gone} (2 refusals in 40 s); the agent retries"
    assert (
        error_at(80, path="/no-request")
        == f"{not_gone}, although the agent can read this job or service; the agent retries"
    )
    assert error_at(120, path="/jobs/") == f"{not_gone} (1 refusals in 0 s); the agent retries"
    error_at(160, path="/agents/me$")
    assert error_at(200, path="/jobs/") == f"{not_gone} (1 refusals in 0 s); the agent retries"


def test_reading_a_job_does_not_reset_the_count_of_refusals_of_another_job(claims: Claims) -> None:
    service = claims.world.order(claims.world.group(f"group-{next(NUMBERS)}"), name="readable")
    readable_id = claims.world.job_of(service)["id"]
    claims.world.sim.add_fault("status", status=403, path=f"/jobs/{claims.job['id']}$")
    for claims.now in (0, 40, 80):
        with pytest.raises(NotCertainlyGone):
            claims.http_403_counter.require_job_gone(claims.job["id"], refused_request="accept the claim")
    with pytest.raises(FulcrumUnavailable, match="although the agent can read this job or service"):
        claims.http_403_counter.require_job_gone(readable_id, refused_request="accept the claim")
    claims.now = 130
    claims.http_403_counter.require_job_gone(claims.job["id"], refused_request="accept the claim")


def test_a_service_that_fulcrumcore_refuses_for_minutes_is_gone(claims: Claims) -> None:
    service_id = claims.job["serviceId"]
    with pytest.raises(FulcrumUnavailable, match="return the service, although the agent can read this job or service"):
        claims.http_403_counter.require_service_gone(service_id)
    claims.world.sim.add_fault("status", status=403, path=f"/services/{service_id}$")
    for claims.now in (0, 40, 80):
        with pytest.raises(NotCertainlyGone, match="FulcrumCore refused to return the service"):
            claims.http_403_counter.require_service_gone(service_id)
    claims.now = 130
    claims.http_403_counter.require_service_gone(service_id)


@pytest.mark.parametrize("path", ["/jobs/[^/]+$", "/agents/me$"])
@pytest.mark.parametrize("claim_status", [400, 403])
def test_a_refusal_to_return_the_job_or_the_agent_requeues_the_job(
    claims: Claims, path: str, claim_status: int
) -> None:
    claims.world.sim.add_fault("status", status=claim_status, path="/claim$", times=1)
    claims.world.sim.add_fault("status", status=400, method="GET", path=path, times=1)
    job = claims.taken()
    with pytest.raises(FulcrumUnavailable) as caught:
        claims.claimer().claim(job, job_queue.lease_of(job))
    assert caught.value.status == 500, "500 means that only this request has failed"
    claims.requeue_without_backoff(job)

    again = claims.taken()
    claims.world.sim.clear_faults()
    claims.claimer().claim(again, job_queue.lease_of(again))
    assert claims.status() == "Processing"


def test_no_job_is_given_up_while_fulcrumcore_answers_every_request_with_403(claims: Claims) -> None:
    claims.world.sim.add_fault("status", status=403, path="^/api/")
    for claims.now in range(0, 600, 30):
        job = claims.taken()
        with pytest.raises(FulcrumUnavailable):
            claims.claimer().claim(job, job_queue.lease_of(job))
        claims.requeue_without_backoff(job)
    claims.world.sim.clear_faults()

    job = claims.taken()
    claims.claimer().claim(job, job_queue.lease_of(job))
    assert claims.status() == "Processing"


def test_a_job_that_was_abandoned_is_ours_if_its_first_claim_is_accepted_later(claims: Claims) -> None:
    claims.world.sim.add_fault("drop_before", path="/claim$", times=1)
    first = claims.taken()
    with pytest.raises(FulcrumUnavailable):
        claims.claimer().claim(first, job_queue.lease_of(first))
    gone_result = JobResult(succeeded=False, code=ErrorCode.JOB_GONE, detail="403")
    with transaction(claims.engine) as session:
        job_queue.finish(session, job_queue.lease_of(first), gone_result, ReportState.ABANDONED)
        assert (
            reopening.reopen(session, [claims.job["id"]], are_claimed_at_fulcrum=False, now_at_fulcrum=utc_now()) == 1
        )
    assert claims.world.agent.claim(claims.job) == 204  # the first claim arrives now

    second = claims.taken()
    claims.claimer().claim(second, job_queue.lease_of(second))
    assert claims.row().claimed_at is not None


def test_a_job_whose_only_claim_arrived_twice_is_failed_after_its_deadline_and_never_run(claims: Claims) -> None:
    """The agent cannot know whether another installation with its token has claimed the job."""
    claims.world.sim.add_fault("twice", path="/claim$", times=1)
    job = claims.taken()
    with pytest.raises(JobNotClaimable) as caught:
        claims.claimer().claim(job, job_queue.lease_of(job))
    assert caught.value.code is ErrorCode.JOB_CLAIMED_ELSEWHERE
    result = JobResult(succeeded=False, code=caught.value.code, detail=str(caught.value))
    with transaction(claims.engine) as session:
        job_queue.finish(session, job_queue.lease_of(job), result, ReportState.CLAIMED_ELSEWHERE)
    poller = poller_of(claims)

    poller.reopen_or_store_claimed_jobs()
    assert claims.row().report_state == "claimed_elsewhere", "the other installation may still run it"
    with transaction(claims.engine) as session:
        session.execute(update(Job).values(deadline_at=utc_now() - timedelta(minutes=5)))
    poller.reopen_or_store_claimed_jobs()
    row = claims.row()
    assert (row.status, row.report_state, row.started_at) == ("failed", "due", None)

    reporter = Reporter(
        engine=claims.engine, fulcrum=claims.fulcrum, state=poller.state, http_403_counter=claims.http_403_counter
    )
    reporter.send_due_reports()
    assert claims.status() == "Failed"
    assert claims.row().report_state == "reported"


def test_a_local_job_is_not_claimed_at_fulcrumcore(claims: Claims) -> None:
    with transaction(claims.engine) as session:
        session.execute(update(Job).values(report_state=ReportState.LOCAL))
    job = claims.taken()
    claims.claimer().claim(job, job_queue.lease_of(job))
    assert claims.calls() == []
    assert claims.row().claim_sent_at is None


def test_a_job_whose_claim_was_accepted_is_claimed_only_once(claims: Claims) -> None:
    with structlog.testing.capture_logs() as logs:
        first = claims.taken()
        claims.claimer().claim(first, job_queue.lease_of(first))
        row = claims.row()
        assert row.claim_sent_at is not None
        assert row.claimed_at is not None
        claims.requeue_without_backoff(first)
        request_count = len(claims.world.sim.history())

        second = claims.taken()
        claims.claimer().claim(second, job_queue.lease_of(second))
    assert len(claims.world.sim.history()) == request_count, "no further request was sent to FulcrumCore"
    assert claims.row().claimed_at == row.claimed_at
    assert logs == [{"event": "job_claimed", "log_level": "info", "attempt": 1}]


@pytest.mark.parametrize(
    ("is_claim_sent", "is_claim_accepted", "expected"),
    [
        (False, False, FirstRequest.SEND_CLAIM),
        (True, False, FirstRequest.READ_JOB),
        (True, True, FirstRequest.NONE),
        (False, True, FirstRequest.NONE),
    ],
)
def test_the_first_request_depends_on_what_is_known_of_an_earlier_claim(
    is_claim_sent: bool, is_claim_accepted: bool, expected: FirstRequest
) -> None:
    assert first_request(is_claim_sent=is_claim_sent, is_claim_accepted=is_claim_accepted) is expected


def test_a_job_whose_claim_is_refused_is_ours_only_if_an_earlier_claim_was_sent() -> None:
    require_claim_by_this_agent("Processing", was_claim_sent_before=True, refusal="the job is claimed")
    with pytest.raises(JobNotClaimable, match=r"^another installation with this agent's token has claimed") as caught:
        require_claim_by_this_agent("Processing", was_claim_sent_before=False, refusal="the job is claimed")
    assert caught.value.code is ErrorCode.JOB_CLAIMED_ELSEWHERE


@pytest.mark.parametrize("was_claim_sent_before", [True, False])
def test_a_refused_claim_of_a_pending_job_is_retried(was_claim_sent_before: bool) -> None:
    with pytest.raises(FulcrumUnavailable, match=r"^the job is locked$") as caught:
        require_claim_by_this_agent("Pending", was_claim_sent_before=was_claim_sent_before, refusal="the job is locked")
    assert caught.value.status == 500, "500 means that only this request has failed"


@pytest.mark.parametrize("was_claim_sent_before", [True, False])
@pytest.mark.parametrize("status", ["Completed", "Failed", None])
def test_a_job_that_has_ended_at_fulcrumcore_is_not_processed(status: str | None, was_claim_sent_before: bool) -> None:
    with pytest.raises(JobNotClaimable, match=f"^the job's status at FulcrumCore is {status}$") as caught:
        require_claim_by_this_agent(status, was_claim_sent_before=was_claim_sent_before, refusal="the job has ended")
    assert caught.value.code is ErrorCode.DEADLINE


def test_a_job_that_fulcrumcore_has_failed_at_its_timeout_is_not_claimed_again(claims: Claims) -> None:
    claims.world.sim.add_fault("drop_after", path="/claim$", times=1)
    first = claims.taken()
    with pytest.raises(FulcrumUnavailable):
        claims.claimer().claim(first, job_queue.lease_of(first))
    claims.requeue_without_backoff(first)
    claims.world.sim.expire_job(claims.job["id"])
    second = claims.taken()
    with pytest.raises(JobNotClaimable, match="the job's status at FulcrumCore is Failed"):
        claims.claimer().claim(second, job_queue.lease_of(second))
    assert claims.calls() == [None], "the claim is not sent again"
