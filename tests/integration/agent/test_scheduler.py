"""The scheduler: when critical jobs are executed, and what happens to one that hangs.

A job is a critical job here. Each execution of one is a turn. A `FakeJob` counts its turns. Its arguments are the
values that it returns, calls or raises in its first turns.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine
from support.scheduled_jobs import NEVER_S, OFTEN_S, WITHIN_S, FakeJob, MakeScheduler, facts, wait_for

from executor.agent.critical_job import CriticalJob
from executor.agent.scheduler import MAX_OUTAGE_DELAY_S, MAX_RETRY_AFTER_S, Scheduler, delay_after_failure_s
from executor.agent.state import Link, fulcrum_log_functions
from executor.errors import FulcrumUnavailable, JobError
from executor.shared.error_codes import ErrorCode


def test_every_job_is_executed_at_once_and_then_at_its_interval(make_scheduler: MakeScheduler) -> None:
    often, rarely = FakeJob(), FakeJob()
    make_scheduler(
        CriticalJob(name="often", interval_s=OFTEN_S, run=often),
        CriticalJob(name="rarely", interval_s=NEVER_S, run=rarely),
    )
    wait_for(lambda: often.turns >= 3 and rarely.turns == 1, "both jobs")


def test_a_job_that_hangs_delays_no_other_job(make_scheduler: MakeScheduler) -> None:
    release = threading.Event()
    stuck, other = FakeJob(release.wait), FakeJob()
    make_scheduler(
        CriticalJob(name="stuck", interval_s=OFTEN_S, run=stuck),
        CriticalJob(name="other", interval_s=OFTEN_S, run=other),
    )
    wait_for(lambda: other.turns >= 5, "the other job")
    assert (stuck.turns, stuck.running_now) == (0, 1)
    release.set()


@pytest.mark.parametrize(
    "failure",
    [
        FulcrumUnavailable("no route"),
        JobError(ErrorCode.NODE_DOWN, "pve1"),
        OSError(28, "No space left on device"),
        ZeroDivisionError("a defect"),
        RecursionError(),
        AssertionError("multi\nline"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_failed_execution_is_stored_and_the_job_is_executed_again(
    make_scheduler: MakeScheduler, sqlite_engine: Engine, failure: Exception
) -> None:
    fake = FakeJob(failure, failure)
    scheduler = make_scheduler(CriticalJob(name="fake", interval_s=NEVER_S, run=fake))
    wait_for(lambda: (row := facts(sqlite_engine, "fake")) and row.failures == 1, "the first failure")
    assert facts(sqlite_engine, "fake").last_error
    assert "\n" not in facts(sqlite_engine, "fake").last_error
    scheduler.jobs["fake"].wake_requested.set()
    wait_for(lambda: facts(sqlite_engine, "fake").failures == 2, "the second failure")
    scheduler.jobs["fake"].wake_requested.set()
    wait_for(lambda: facts(sqlite_engine, "fake").failures == 0, "the recovery")
    row = facts(sqlite_engine, "fake")
    assert (row.runs, row.last_error, row.last_ok_at is not None) == (3, None, True)


def test_a_job_that_cannot_reach_fulcrumcore_sets_the_link_down(make_scheduler: MakeScheduler) -> None:
    link = Link(fulcrum_log_functions())
    make_scheduler(
        CriticalJob(name="fake", interval_s=NEVER_S, run=FakeJob(FulcrumUnavailable("no route")), fulcrum_link=link),
    )
    wait_for(lambda: not link.is_up, "the outage")
    assert link.reason == "no route"


def test_waking_a_job_executes_it_at_once(make_scheduler: MakeScheduler) -> None:
    fake = FakeJob()
    scheduler = make_scheduler(CriticalJob(name="fake", interval_s=NEVER_S, run=fake))
    for turn in range(1, 4):
        wait_for(lambda turn=turn: fake.turns == turn, f"turn {turn}")
        scheduler.jobs["fake"].wake_requested.set()


def test_waking_a_job_during_an_execution_starts_another_execution_after_it(make_scheduler: MakeScheduler) -> None:
    release = threading.Event()
    fake = FakeJob(release.wait)
    scheduler = make_scheduler(CriticalJob(name="fake", interval_s=NEVER_S, run=fake))
    wait_for(lambda: fake.running_now == 1, "the first turn")
    scheduler.jobs["fake"].wake_requested.set()
    release.set()
    wait_for(lambda: fake.turns == 2, "the second turn")


def test_executions_of_one_job_never_overlap(make_scheduler: MakeScheduler) -> None:
    fake = FakeJob(*[lambda: time.sleep(0.002)] * 50)
    scheduler = make_scheduler(CriticalJob(name="fake", interval_s=0.001, run=fake))
    wake = scheduler.jobs["fake"].wake_requested
    callers = [threading.Thread(target=lambda: [wake.set() for _ in range(2000)]) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    wait_for(lambda: fake.turns >= 10, "ten turns")
    assert fake.max_running_at_once == 1


def test_a_job_may_request_an_earlier_execution(make_scheduler: MakeScheduler) -> None:
    """A job may return the wait for its next execution in place of its interval. 0 means at once."""
    soon, immediate = FakeJob(OFTEN_S, OFTEN_S, OFTEN_S), FakeJob(0.0, 0.0, 0.0)
    make_scheduler(
        CriticalJob(name="soon", interval_s=NEVER_S, run=soon),
        CriticalJob(name="immediate", interval_s=NEVER_S, run=immediate),
    )
    wait_for(lambda: (soon.turns, immediate.turns) == (4, 4), "three early turns")


def test_a_job_may_request_a_later_execution(make_scheduler: MakeScheduler) -> None:
    patient, other = FakeJob(NEVER_S), FakeJob()
    make_scheduler(
        CriticalJob(name="patient", interval_s=0.001, run=patient),
        CriticalJob(name="other", interval_s=0.001, run=other),
    )
    wait_for(lambda: other.turns >= 10, "ten turns of the other")
    assert patient.turns == 1


def test_a_wait_that_fulcrumcore_requests_delays_the_next_execution(make_scheduler: MakeScheduler) -> None:
    limited = FakeJob(FulcrumUnavailable("HTTP 429", status=429, retry_after_s=NEVER_S))
    other = FakeJob(FulcrumUnavailable("HTTP 503", status=503))
    make_scheduler(
        CriticalJob(name="limited", interval_s=0.001, run=limited),
        CriticalJob(name="other", interval_s=0.001, run=other),
    )
    wait_for(lambda: limited.turns == 1 and other.turns >= 10, "ten turns of the other")
    assert limited.turns == 1


@pytest.mark.parametrize(
    ("interval_s", "retry_after_s", "delay_s"),
    [(2, None, 2), (2, 0, 2), (2, 10, 10), (2, NEVER_S, MAX_RETRY_AFTER_S), (60, 10, 60), (60, NEVER_S, 60)],
)
def test_the_delay_after_a_failure_is_bounded(interval_s: float, retry_after_s: float | None, delay_s: float) -> None:
    assert delay_after_failure_s(interval_s, FulcrumUnavailable("429", retry_after_s=retry_after_s)) == delay_s


def test_the_delay_doubles_with_each_failure_in_an_outage_up_to_a_bound() -> None:
    delays_s = [delay_after_failure_s(2, FulcrumUnavailable("503"), count) for count in (1, 2, 3, 4, 10_000)]
    assert delays_s == [2, 4, MAX_OUTAGE_DELAY_S, MAX_OUTAGE_DELAY_S, MAX_OUTAGE_DELAY_S]
    assert [delay_after_failure_s(10, FulcrumUnavailable("503"), count) for count in (1, 5)] == [10, 10]
    assert delay_after_failure_s(2, FulcrumUnavailable("429", retry_after_s=15), 9) == 15


def test_failures_in_a_row_are_counted_and_the_first_answer_wakes_the_other_jobs(make_scheduler: MakeScheduler) -> None:
    link = Link(fulcrum_log_functions())
    down = [FulcrumUnavailable("no route") for _ in range(3)]
    poll_work, heartbeat_work = FakeJob(*down), FakeJob(*down)
    poll = CriticalJob(name="poll", interval_s=OFTEN_S, run=poll_work, fulcrum_link=link)
    heartbeat = CriticalJob(name="heartbeat", interval_s=NEVER_S, run=heartbeat_work, fulcrum_link=link)
    link.recovery_events.append(heartbeat.wake_requested)
    make_scheduler(poll, heartbeat)
    wait_for(lambda: poll_work.turns >= 4 and poll.outage_failure_count == 0, "a poll that succeeds")
    assert heartbeat_work.turns == 1
    link.record_answer()
    wait_for(lambda: heartbeat_work.turns == 2, "the heartbeat after the recovery")


@pytest.mark.usefixtures("time_zone_in_the_far_east")
def test_setting_the_clock_back_does_not_stop_the_jobs(
    make_scheduler: MakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every autumn local time is set back by an hour, and `schedule` reads local time."""
    fake = FakeJob(0.3)
    make_scheduler(CriticalJob(name="fake", interval_s=NEVER_S, run=fake))
    wait_for(lambda: fake.turns == 1, "the first turn")
    monkeypatch.setenv("TZ", "<-12>12")
    time.tzset()
    wait_for(lambda: fake.turns == 2, "the turn after the clock was set back")


@pytest.fixture
def time_zone_in_the_far_east() -> Iterator[None]:
    """Set a time time_zone_in_the_far_east far in the east; restore the previous one."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "<+12>-12"
    time.tzset()
    yield
    os.environ.pop("TZ", None)
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def test_a_job_that_is_executed_at_its_interval_is_not_overdue(make_scheduler: MakeScheduler) -> None:
    fake = FakeJob()
    scheduler = make_scheduler(CriticalJob(name="fake", interval_s=OFTEN_S, run=fake))
    wait_for(lambda: fake.turns >= 3, "three turns")
    assert scheduler.overdue_critical_jobs() == []


def test_a_stuck_job_is_overdue_and_gets_a_new_thread(make_scheduler: MakeScheduler) -> None:
    release = threading.Event()
    fake, other = FakeJob(release.wait), FakeJob()
    scheduler = make_scheduler(
        CriticalJob(name="stuck", interval_s=0.001, run=fake),
        CriticalJob(name="other", interval_s=0.001, run=other),
    )
    wait_for(
        lambda: "stuck" in scheduler.overdue_critical_jobs(max_intervals=1, tolerance_s=0.2),
        "the detection of the stuck job",
    )
    old_thread = scheduler._threads["stuck"]
    scheduler.restart("stuck")
    wait_for(lambda: fake.turns >= 2, "turns of the new thread")
    release.set()
    wait_for(lambda: not old_thread.is_alive(), "the end of the old thread")
    turns = fake.turns
    wait_for(lambda: fake.turns > turns, "another turn of the new thread")
    assert scheduler._threads["stuck"].is_alive()


def test_a_job_whose_thread_has_died_is_overdue(sqlite_engine: Engine) -> None:
    fake = FakeJob()
    scheduler = Scheduler(sqlite_engine, [CriticalJob(name="fake", interval_s=NEVER_S, run=fake)])
    assert scheduler.overdue_critical_jobs() == ["fake"]
    scheduler.start()
    assert scheduler.overdue_critical_jobs() == []
    scheduler.stop(timeout_s=WITHIN_S)
    assert scheduler.overdue_critical_jobs() == ["fake"]


def test_stop_ends_every_thread_also_during_a_long_wait(sqlite_engine: Engine) -> None:
    fakes = [FakeJob() for _ in range(3)]
    jobs = [CriticalJob(name=f"fake-{number}", interval_s=NEVER_S, run=fake) for number, fake in enumerate(fakes)]
    scheduler = Scheduler(sqlite_engine, jobs)
    scheduler.start()
    wait_for(lambda: all(fake.turns == 1 for fake in fakes), "the first turns")
    scheduler.stop(timeout_s=WITHIN_S)
    assert not any(thread.is_alive() for thread in scheduler._threads.values())
    assert [fake.turns for fake in fakes] == [1, 1, 1]
