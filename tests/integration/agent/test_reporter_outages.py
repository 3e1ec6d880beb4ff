"""The reporter while FulcrumCore is down, refuses the token or has lost jobs.

In a round (`outbox.turn`), the reporter sends the due reports once. An abandoned job gets no report.
"""

from __future__ import annotations

import pytest
import structlog
from sqlalchemy import update
from support.outbox_world import FAILED, Outbox, made

from executor.agent.heartbeat import Heartbeat
from executor.agent.poller import Poller
from executor.agent.reporter import (
    BACKOFF_WAIT_S,
    SENDER_THREADS,
)
from executor.database import reopening
from executor.database.engine import transaction
from executor.database.outbox import postpone_report
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.fulcrum.vault import SecretResolver


def test_in_an_outage_the_backoff_grows_to_a_minute(outbox: Outbox) -> None:
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.world.sim.add_fault("status", status=503)
    waits_s = []
    for _ in range(9):
        before = utc_now()
        loop_wait_s = outbox.turn()
        row = outbox.row(job_id)
        assert row.report_state == "due"
        assert row.report_after is not None
        waits_s.append(((row.report_after - before).total_seconds(), loop_wait_s))
    assert outbox.row(job_id).report_attempts == 9
    assert not outbox.state.fulcrum_link.is_up
    assert "503" in outbox.state.fulcrum_link.reason
    for attempt, (row_backoff_s, loop_wait_s) in enumerate(waits_s):
        max_s = min(2.0**attempt, 60.0)
        assert max_s * 0.5 - 0.1 <= row_backoff_s <= max_s + 1
        assert min(2.0 ** (attempt + 1), 60.0) * 0.5 <= loop_wait_s <= min(2.0 ** (attempt + 1), 60.0)
    assert not outbox.state.poll_requested.is_set()
    outbox.world.sim.clear_faults()
    assert outbox.turn() == 0.0
    assert outbox.state.fulcrum_link.is_up
    assert outbox.row(job_id).report_state == "reported"


@pytest.mark.parametrize("seen_by", ["reporter", "another part"])
def test_after_an_outage_the_waits_between_rounds_start_again_at_the_minimum(outbox: Outbox, seen_by: str) -> None:
    outbox.ended(outbox.ordered(), made())
    outbox.world.sim.add_fault("status", status=503)
    outbox.turn(4)
    if seen_by == "reporter":
        outbox.world.sim.clear_faults()
        assert outbox.turn() == 0.0
        outbox.ended(outbox.ordered(), made())
        outbox.world.sim.add_fault("status", status=503)
    outbox.state.fulcrum_recovered.clear()
    if seen_by == "another part":
        outbox.state.fulcrum_recovered.set()
    assert 1.0 <= outbox.turn() < 2.0


@pytest.mark.parametrize("status", [403, 503])
def test_the_first_report_that_fails_ends_the_round(outbox: Outbox, status: int) -> None:
    """Each sender may have begun one report when the first answer arrives."""
    jobs = [outbox.ordered() for _ in range(3 * SENDER_THREADS)]
    job_ids = [outbox.ended(job, made()) for job in jobs]
    outbox.world.sim.add_fault("status", status=status)
    outbox.reporter.send_due_reports()
    assert 1 <= sum(len(outbox.reports(job)) for job in jobs) <= SENDER_THREADS
    assert {outbox.row(job_id).report_state for job_id in job_ids} == {"due"}
    outbox.world.sim.clear_faults()
    assert outbox.turn() == 0.0
    assert {outbox.row(job_id).report_state for job_id in job_ids} == {"reported"}


def test_a_report_waits_at_least_for_the_time_in_retry_after(outbox: Outbox) -> None:
    job_id = outbox.ended(outbox.ordered(), made())
    outbox.world.sim.add_fault("status", status=429, path="/complete$", times=1, headers={"Retry-After": "40"})
    before = utc_now()
    outbox.turn()
    after = outbox.row(job_id).report_after
    assert after is not None
    assert (after - before).total_seconds() >= 40


@pytest.mark.parametrize("seen_by", ["heartbeat", "poller"])
def test_the_first_answer_after_an_outage_to_any_part_of_the_agent_ends_the_backoff_of_every_report(
    outbox: Outbox, seen_by: str
) -> None:
    job = outbox.ordered()
    job_id = outbox.ended(job, FAILED)
    with transaction(outbox.engine) as session:
        postpone_report(session, job_id, backoff_s=3600, note="no answer")
    outbox.state.fulcrum_link.record_failed_call("away")
    assert outbox.reporter.send_due_reports() == BACKOFF_WAIT_S
    assert outbox.reports(job) == []

    state, fulcrum = outbox.state, outbox.reporter.fulcrum
    if seen_by == "heartbeat":
        Heartbeat(fulcrum=fulcrum, state=state).send()
    else:
        Poller(
            engine=outbox.engine,
            fulcrum=fulcrum,
            secret_resolver=SecretResolver(fulcrum),
            state=state,
            job_timeout_s=300,
            interval_s=2,
        ).poll()

    assert state.report_requested.is_set(), "the reporter's wait ends"
    assert state.dispatch_requested.is_set(), "jobs may be claimed again"
    outbox.reporter.send_due_reports()
    assert outbox.reports(job) == [("fail", 204)]


def test_after_an_outage_all_reports_are_due_at_once(outbox: Outbox) -> None:
    first, *others = [outbox.ended(outbox.ordered(), made()) for _ in range(4)]
    outbox.state.fulcrum_link.record_failed_call("away")
    with transaction(outbox.engine) as session:
        for job_id in others:
            postpone_report(session, job_id, backoff_s=3600, note="away")
    assert outbox.reporter.send_due_reports() == 0.0
    assert outbox.row(first).report_state == "reported"
    assert outbox.reporter.send_due_reports() == 0.0
    assert {outbox.row(job_id).report_state for job_id in others} == {"reported"}


def test_a_job_that_fulcrumcore_has_deleted_is_abandoned(outbox: Outbox) -> None:
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.world.sim.delete_job(job["id"])
    states: list[str] = []
    notes: list[str | None] = []
    for outbox.now in (0, 1, 40, 80, 130):
        outbox.turn()
        states.append(outbox.row(job_id).report_state)
        notes.append(outbox.row(job_id).report_note)
    assert notes[0] == "FulcrumCore refused to accept the report (1 refusals in 0 s); the agent retries"
    assert states == ["due"] * 4 + ["abandoned"]
    assert outbox.row(job_id).report_note == "the job was deleted in FulcrumCore, or belongs to another agent"
    assert outbox.state.fulcrum_link.is_up


def test_no_job_is_abandoned_if_some_requests_between_the_403_succeed(outbox: Outbox) -> None:
    """FulcrumCore's database is down for a moment at each report, but never at the requests in between."""
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    for outbox.now in (0, 100, 200, 300, 400):
        outbox.world.sim.add_fault("status", status=403, path="/jobs/", times=2)
        outbox.turn()
        assert outbox.row(job_id).report_state == "due"
        outbox.world.sim.clear_faults()
        outbox.world.sim.add_fault("status", status=403, path="/agents/me$", times=1)
        outbox.world.sim.add_fault("status", status=403, path="/complete$", times=1)
        outbox.turn()
        outbox.world.sim.clear_faults()
        assert outbox.row(job_id).report_state == "due"
    outbox.turn()
    assert outbox.row(job_id).report_state == "reported"
    assert outbox.job_at_core(job)["status"] == "Completed"


def test_an_abandoned_report_is_sent_when_fulcrumcore_lists_the_job_again(outbox: Outbox) -> None:
    """FulcrumCore refused the job for minutes, as if the job was deleted, and then knows the job again."""
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.world.sim.add_fault("status", status=403, path="/jobs/")
    for outbox.now in (0, 40, 80, 130):
        outbox.turn()
    assert outbox.row(job_id).report_state == "abandoned"
    outbox.world.sim.clear_faults()
    with transaction(outbox.engine) as session:
        session.execute(update(Job).values(started_at=utc_now()))  # the result is reported, because it comes from a run
        assert reopening.reopen(session, [job["id"]], are_claimed_at_fulcrum=True, now_at_fulcrum=utc_now()) == 1
    outbox.turn()
    assert outbox.row(job_id).report_state == "reported"
    assert outbox.job_at_core(job)["status"] == "Completed"


def test_no_job_is_abandoned_while_fulcrumcore_refuses_the_token_for_every_request(outbox: Outbox) -> None:
    job_id = outbox.ended(outbox.ordered(), made())
    outbox.world.sim.add_fault("status", status=403, path="^/api/")
    outbox.turn()
    assert outbox.row(job_id).report_state == "due"
    assert not outbox.state.fulcrum_link.is_up


@pytest.mark.parametrize(("status", "event"), [(403, "fulcrum_token_refused"), (503, "fulcrum_not_answering")])
def test_the_log_says_whether_the_token_is_refused_or_fulcrumcore_does_not_answer(
    outbox: Outbox, status: int, event: str
) -> None:
    outbox.ended(outbox.ordered(), made())
    outbox.world.sim.add_fault("status", status=status, path="^/api/")
    with structlog.testing.capture_logs() as logs:
        outbox.turn()
    assert [entry["event"] for entry in logs if entry["event"].startswith("fulcrum_")] == [event]


def test_repeated_failures_of_one_report_are_logged_once(outbox: Outbox) -> None:
    """The following failures of the same report are in the job's row, and FulcrumCore still counts as reachable."""
    outbox.ended(outbox.ordered(), made())
    outbox.world.sim.add_fault("status", status=429, path="/complete$")
    with structlog.testing.capture_logs() as logs:
        outbox.turn(3)
    assert [entry["event"] for entry in logs].count("report_postponed") == 1
    assert outbox.state.fulcrum_link.is_up


def test_a_single_403_abandons_no_job(outbox: Outbox) -> None:
    """FulcrumCore answers 403 for a deleted job, and also while its database is down."""
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.world.sim.add_fault("status", status=403, method="POST", path="/complete$", times=1)
    outbox.turn()
    assert outbox.row(job_id).report_state == "due"
    assert outbox.state.fulcrum_link.is_up
    outbox.turn()
    assert outbox.row(job_id).report_state == "reported"
    assert outbox.job_at_core(job)["status"] == "Completed"


def test_an_agent_that_stops_sends_no_further_report(outbox: Outbox) -> None:
    """A round may be longer than the time that a stopping agent has. A report that is not sent stays due."""
    job = outbox.ordered()
    job_id = outbox.ended(job, FAILED)
    outbox.state.stopping.set()
    outbox.turn()
    assert outbox.reports(job) == []
    assert outbox.row(job_id).report_state == "due"


def test_flush_sends_due_reports_and_returns_whether_all_were_sent(outbox: Outbox) -> None:
    job_id = outbox.ended(outbox.ordered(), made())
    assert outbox.reporter.flush(10)
    assert outbox.row(job_id).report_state == "reported"
    outbox.ended(outbox.ordered(), made())
    outbox.world.sim.add_fault("status", status=503)
    assert not outbox.reporter.flush(1)
