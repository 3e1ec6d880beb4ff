"""When an agent ends by itself, in each mode.

`AgentEndCheck` never waits, because the main loop must report its progress. In the mode `serve` it never ends. In the
mode `once` it ends after the jobs of one poll, and in the mode `until-idle` when no job is left.
"""

from __future__ import annotations

import pytest
from sqlalchemy import update
from support.agent_parts import AgentParts

from executor.agent.mode import AgentEndCheck, Mode
from executor.database import pauses
from executor.database.engine import transaction
from executor.database.tables.jobs import Job
from executor.model import JobStatus, ReportState


def make_agent_end_check(parts: AgentParts, mode: Mode) -> AgentEndCheck:
    return AgentEndCheck(mode=mode, engine=parts.engine, state=parts.state, dispatcher=parts.dispatcher)


def end_job(parts: AgentParts, job_id: int, report_state: ReportState) -> None:
    columns = {"status": JobStatus.COMPLETED, "report_state": report_state}
    with transaction(parts.engine) as session:
        session.execute(update(Job).where(Job.id == job_id).values(**columns))


def test_in_the_mode_serve_an_agent_is_never_done(parts: AgentParts) -> None:
    parts.state.finished_poll_count = 10
    assert not make_agent_end_check(parts, Mode.SERVE).is_done()


def test_until_idle_needs_two_more_polls_after_the_last_report(parts: AgentParts) -> None:
    job_id = parts.submit(parts.add_started_service())
    work = make_agent_end_check(parts, Mode.UNTIL_IDLE)
    parts.state.finished_poll_count = 3
    assert not work.is_done(), "a job is pending"
    end_job(parts, job_id, ReportState.DUE)
    assert not work.is_done(), "a report is due"
    end_job(parts, job_id, ReportState.REPORTED)
    assert not work.is_done()
    assert parts.state.poll_requested.is_set()
    parts.state.finished_poll_count = 4
    assert not work.is_done(), "this poll may have begun before the report"
    parts.state.finished_poll_count = 5
    assert work.is_done()


def test_a_job_that_arrives_between_two_polls_starts_the_count_of_polls_again(parts: AgentParts) -> None:
    work = make_agent_end_check(parts, Mode.UNTIL_IDLE)
    parts.state.finished_poll_count = 1
    assert not work.is_done()
    job_id = parts.submit(parts.add_started_service())
    parts.state.finished_poll_count = 3
    assert not work.is_done()
    end_job(parts, job_id, ReportState.REPORTED)
    assert not work.is_done()
    parts.state.finished_poll_count = 5
    assert work.is_done()


def test_an_agent_does_not_wait_for_pending_jobs_while_the_agents_are_paused(parts: AgentParts) -> None:
    parts.submit(parts.add_started_service())
    work = make_agent_end_check(parts, Mode.ONCE)
    parts.state.finished_poll_count = 1
    assert not work.is_done()
    with transaction(parts.engine) as session:
        pauses.start(session, who="root", reason="maintenance")
    assert work.is_done()


def test_until_idle_does_not_request_polls_while_fulcrumcore_does_not_answer(parts: AgentParts) -> None:
    work = make_agent_end_check(parts, Mode.UNTIL_IDLE)
    parts.state.finished_poll_count = 1
    parts.state.fulcrum_link.record_failed_call("no answer")
    assert not work.is_done()
    assert not parts.state.poll_requested.is_set()


def test_once_is_done_after_the_jobs_of_one_poll(parts: AgentParts) -> None:
    work = make_agent_end_check(parts, Mode.ONCE)
    assert not work.is_done(), "no poll has finished"
    job_id = parts.submit(parts.add_started_service())
    parts.state.finished_poll_count = 1
    assert not work.is_done()
    end_job(parts, job_id, ReportState.REPORTED)
    assert work.is_done()


@pytest.mark.parametrize(("mode", "is_done"), [(Mode.SERVE, False), (Mode.ONCE, True), (Mode.UNTIL_IDLE, True)])
def test_a_disabled_agent_that_should_end_by_itself_is_done(parts: AgentParts, mode: Mode, is_done: bool) -> None:
    parts.submit(parts.add_started_service())
    parts.state.is_disabled = True
    assert make_agent_end_check(parts, mode).is_done() is is_done
