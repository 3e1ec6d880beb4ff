"""Jobs that the agent has abandoned (it will send no report), and jobs that another installation has claimed.

The other installation uses the same token. So FulcrumCore lists its jobs as claimed by this agent.
"""

from __future__ import annotations

import pytest
from sqlalchemy import delete
from support.claims_world import Claims, poller_of

from executor.agent.poller import COMPARISON_INTERVAL_S, Poller
from executor.agent.state import AgentState
from executor.database import job_queue, reopening
from executor.database.engine import transaction
from executor.database.tables.jobs import Job
from executor.fulcrum.vault import SecretResolver
from executor.model import JobResult, ReportState
from executor.shared.error_codes import ErrorCode


@pytest.mark.parametrize("is_claimed", [False, True])
def test_an_abandoned_job_that_fulcrumcore_lists_is_processed(claims: Claims, is_claimed: bool) -> None:
    job = claims.taken()
    gone_result = JobResult(succeeded=False, code=ErrorCode.JOB_GONE, detail="403")
    with transaction(claims.engine) as session:
        job_queue.finish(session, job_queue.lease_of(job), gone_result, ReportState.ABANDONED)
    if is_claimed:
        assert claims.world.agent.claim(claims.job) == 204
    state = AgentState(agent_id=claims.world.ids.agent_id)
    poller = Poller(
        engine=claims.engine,
        fulcrum=claims.fulcrum,
        secret_resolver=SecretResolver(claims.fulcrum),
        state=state,
        job_timeout_s=300,
        interval_s=2,
    )
    poller.recover_claimed_jobs() if is_claimed else poller.poll()

    row = claims.row()
    assert (row.status, row.report_state, row.error_code) == ("pending", "none", None)
    assert (row.claimed_at is not None) is is_claimed
    claimed = claims.taken()
    claims.claimer().claim(claimed, job_queue.lease_of(claimed))
    assert claims.status() == "Processing"


def end_as_claimed_elsewhere(claims: Claims, report_state: ReportState = ReportState.CLAIMED_ELSEWHERE) -> Job:
    """Store that another installation has claimed the job; return its row."""
    job = claims.taken()
    elsewhere_result = JobResult(succeeded=False, code=ErrorCode.JOB_CLAIMED_ELSEWHERE, detail="400")
    with transaction(claims.engine) as session:
        job_queue.finish(session, job_queue.lease_of(job), elsewhere_result, report_state)
    return job


@pytest.mark.parametrize("stored", [ReportState.CLAIMED_ELSEWHERE, ReportState.ABANDONED])
def test_a_job_that_another_executor_has_claimed_is_not_reopened(claims: Claims, stored: ReportState) -> None:
    end_as_claimed_elsewhere(claims, stored)
    with transaction(claims.engine) as session:
        now = claims.row().deadline_at
        assert reopening.reopen(session, [claims.job["id"]], are_claimed_at_fulcrum=True, now_at_fulcrum=now) == 0
    assert claims.row().report_state == stored


@pytest.mark.parametrize("stored", [ReportState.CLAIMED_ELSEWHERE, ReportState.ABANDONED])
@pytest.mark.parametrize("is_first_poll", [True, False])
def test_a_job_of_another_executor_is_marked_claimed_elsewhere_until_it_has_ended_in_fulcrumcore(
    claims: Claims, stored: ReportState, is_first_poll: bool
) -> None:
    end_as_claimed_elsewhere(claims, stored)
    assert claims.world.agent.claim(claims.job) == 204
    poller = poller_of(claims)
    compare = poller.recover_claimed_jobs if is_first_poll else poller.reopen_or_store_claimed_jobs

    compare()
    assert (claims.row().status, claims.row().report_state) == ("failed", "claimed_elsewhere")
    assert claims.world.agent.fail(claims.job, "CAPACITY: full").status_code == 204
    compare()
    assert claims.row().report_state == "abandoned"


def test_a_job_of_another_executor_that_is_pending_again_is_processed(claims: Claims) -> None:
    end_as_claimed_elsewhere(claims)
    poller_of(claims).poll()

    row = claims.row()
    assert (row.status, row.report_state, row.error_code, row.claimed_at) == ("pending", "none", None, None)
    claimed = claims.taken()
    claims.claimer().claim(claimed, job_queue.lease_of(claimed))
    assert claims.status() == "Processing"


def test_an_operator_can_continue_a_job_of_another_executor(claims: Claims) -> None:
    job = end_as_claimed_elsewhere(claims)
    assert claims.world.agent.claim(claims.job) == 204
    with transaction(claims.engine) as session:
        assert reopening.retry_now(session, job.id) == "attempt"

    again = claims.taken()
    claims.claimer().claim(again, job_queue.lease_of(again))
    assert claims.row().claimed_at is not None
    assert claims.calls() == [204], "only the other installation has sent a claim"


def test_a_claimed_job_without_a_row_is_stored_as_claimed_elsewhere_and_not_processed(
    claims: Claims, caplog: pytest.LogCaptureFixture
) -> None:
    with transaction(claims.engine) as session:
        session.execute(delete(Job))
    assert claims.world.agent.claim(claims.job) == 204
    poller = poller_of(claims)

    for _ in range(3):
        poller.reopen_or_store_claimed_jobs()

    row = claims.row()
    assert (row.status, row.report_state, row.error_code) == ("failed", "claimed_elsewhere", "JOB_CLAIMED_ELSEWHERE")
    with transaction(claims.engine) as session:
        assert job_queue.claim(session, "me", lease_s=30) is None
    lines = [record.msg for record in caplog.records if "unaccepted_jobs" in str(record.msg)]
    assert len(lines) == 1
    assert "'claimed_elsewhere': 1" in str(lines[0])


def test_the_poller_compares_claimed_jobs_at_its_interval(claims: Claims) -> None:
    poller = poller_of(claims)
    poller.poll_if_allowed()
    end_as_claimed_elsewhere(claims)
    assert claims.world.agent.claim(claims.job) == 204
    assert claims.world.agent.fail(claims.job, "CAPACITY: full").status_code == 204
    poller.poll_if_allowed()
    assert claims.row().report_state == "claimed_elsewhere"
    poller._compared_at -= COMPARISON_INTERVAL_S
    poller.poll_if_allowed()
    assert claims.row().report_state == "abandoned"
