"""The critical jobs on real threads: none delays another, none ends for good, and never two of one kind at once."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import Engine

from executor.agent.scheduler import CriticalJob, Scheduler
from executor.agent.state import Link
from executor.database import periods, queries
from executor.database.engine import reading, transaction
from executor.errors import ErrorCode, FulcrumUnavailable, JobError

WITHIN_S = 30.0
OFTEN_S = 0.02
#: An interval that no test waits for.
NEVER_S = 3600.0
MakeScheduler = Callable[..., Scheduler]


def wait_for(is_so: Callable[[], object], what: str) -> None:
    """Wait until something is so; fail when it never is."""
    limit = time.monotonic() + WITHIN_S
    while not is_so():
        assert time.monotonic() < limit, f"{what} never happened"
        time.sleep(0.005)


class Duty:
    """What a critical job does: counts its turns, and does on each what it is told."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.turns = 0
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def __call__(self) -> float | None:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
            answer = self._answers.pop(0) if self._answers else None
        try:
            found = answer() if callable(answer) else answer
            if isinstance(found, BaseException):
                raise found
            return found
        finally:
            with self._lock:
                self.at_once -= 1
                self.turns += 1


@pytest.fixture
def make_scheduler(sqlite_engine: Engine) -> Iterator[MakeScheduler]:
    """Return a maker of running schedulers; they are stopped at the end."""
    made: list[Scheduler] = []

    def make(*jobs: CriticalJob, engine: Engine = sqlite_engine) -> Scheduler:
        made.append(Scheduler(engine, jobs))
        made[-1].start()
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.stop(within_s=WITHIN_S)


def facts(engine: Engine, name: str) -> Any:
    """Return a critical job's row, None before there is one."""
    with reading(engine) as session:
        return next((row for row in queries.critical_jobs(session) if row.name == name), None)


def test_every_duty_takes_its_first_turn_at_once_and_goes_on(make_scheduler: MakeScheduler) -> None:
    often, rarely = Duty(), Duty()
    make_scheduler(
        CriticalJob(name="often", interval_s=OFTEN_S, run=often),
        CriticalJob(name="rarely", interval_s=NEVER_S, run=rarely),
    )
    wait_for(lambda: often.turns >= 3 and rarely.turns == 1, "both duties")


def test_a_duty_that_hangs_delays_no_other(make_scheduler: MakeScheduler) -> None:
    release = threading.Event()
    stuck, other = Duty(release.wait), Duty()
    make_scheduler(
        CriticalJob(name="stuck", interval_s=OFTEN_S, run=stuck),
        CriticalJob(name="other", interval_s=OFTEN_S, run=other),
    )
    wait_for(lambda: other.turns >= 5, "the other duty")
    assert (stuck.turns, stuck.at_once) == (0, 1)
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
def test_a_turn_that_fails_is_written_down_and_the_next_one_comes(
    make_scheduler: MakeScheduler, sqlite_engine: Engine, failure: Exception
) -> None:
    duty = Duty(failure, failure)
    scheduler = make_scheduler(CriticalJob(name="duty", interval_s=NEVER_S, run=duty))
    wait_for(lambda: (row := facts(sqlite_engine, "duty")) and row.failures == 1, "the first failure")
    assert facts(sqlite_engine, "duty").last_error
    assert "\n" not in facts(sqlite_engine, "duty").last_error
    scheduler.jobs["duty"].wake.set()
    wait_for(lambda: facts(sqlite_engine, "duty").failures == 2, "the second failure")
    scheduler.jobs["duty"].wake.set()
    wait_for(lambda: facts(sqlite_engine, "duty").failures == 0, "the recovery")
    row = facts(sqlite_engine, "duty")
    assert (row.runs, row.last_error, row.last_ok_at is not None) == (3, None, True)


def test_a_link_is_told_that_fulcrumcore_is_silent(make_scheduler: MakeScheduler) -> None:
    link = Link("fulcrum")
    make_scheduler(
        CriticalJob(name="duty", interval_s=NEVER_S, run=Duty(FulcrumUnavailable("no route")), link=link),
    )
    wait_for(lambda: not link.is_up, "the outage")
    assert link.reason == "no route"


def test_waking_a_duty_takes_a_turn_at_once(make_scheduler: MakeScheduler) -> None:
    duty = Duty()
    scheduler = make_scheduler(CriticalJob(name="duty", interval_s=NEVER_S, run=duty))
    for turn in range(1, 4):
        wait_for(lambda turn=turn: duty.turns == turn, f"turn {turn}")
        scheduler.jobs["duty"].wake.set()


def test_a_call_during_a_turn_is_heard_after_it(make_scheduler: MakeScheduler) -> None:
    release = threading.Event()
    duty = Duty(release.wait)
    scheduler = make_scheduler(CriticalJob(name="duty", interval_s=NEVER_S, run=duty))
    wait_for(lambda: duty.at_once == 1, "the first turn")
    scheduler.jobs["duty"].wake.set()
    release.set()
    wait_for(lambda: duty.turns == 2, "the second turn")


def test_two_of_one_kind_never_run_at_once_however_often_they_are_called(make_scheduler: MakeScheduler) -> None:
    duty = Duty(*[lambda: time.sleep(0.002)] * 50)
    scheduler = make_scheduler(CriticalJob(name="duty", interval_s=0.001, run=duty))
    wake = scheduler.jobs["duty"].wake
    callers = [threading.Thread(target=lambda: [wake.set() for _ in range(2000)]) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    wait_for(lambda: duty.turns >= 10, "ten turns")
    assert duty.most_at_once == 1


def test_a_duty_may_say_when_its_next_turn_is(make_scheduler: MakeScheduler) -> None:
    """Sooner than its interval, and 0 is "at once", not "as ever"."""
    soon, at_once = Duty(OFTEN_S, OFTEN_S, OFTEN_S), Duty(0.0, 0.0, 0.0)
    make_scheduler(
        CriticalJob(name="soon", interval_s=NEVER_S, run=soon),
        CriticalJob(name="at once", interval_s=NEVER_S, run=at_once),
    )
    wait_for(lambda: (soon.turns, at_once.turns) == (4, 4), "three early turns")


def test_a_duty_may_ask_for_a_longer_pause(make_scheduler: MakeScheduler) -> None:
    patient, other = Duty(NEVER_S), Duty()
    make_scheduler(
        CriticalJob(name="patient", interval_s=0.001, run=patient),
        CriticalJob(name="other", interval_s=0.001, run=other),
    )
    wait_for(lambda: other.turns >= 10, "ten turns of the other")
    assert patient.turns == 1


@pytest.mark.usefixtures("zone")
def test_setting_the_clock_back_does_not_stop_the_duties(
    make_scheduler: MakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every autumn local time is set back by an hour, and `schedule` looks at local time."""
    duty = Duty(0.3)
    make_scheduler(CriticalJob(name="duty", interval_s=NEVER_S, run=duty))
    wait_for(lambda: duty.turns == 1, "the first turn")
    monkeypatch.setenv("TZ", "<-12>12")
    time.tzset()
    wait_for(lambda: duty.turns == 2, "the turn after the clock was set back")


@pytest.fixture
def zone() -> Iterator[None]:
    """Begin far in the east; put the zone back that was."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "<+12>-12"
    time.tzset()
    yield
    os.environ.pop("TZ", None)
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


# --- overdue and repair -------------------------------------------------------------------------------------------


def test_a_duty_that_moves_is_not_overdue(make_scheduler: MakeScheduler) -> None:
    duty = Duty()
    scheduler = make_scheduler(CriticalJob(name="duty", interval_s=OFTEN_S, run=duty))
    wait_for(lambda: duty.turns >= 3, "three turns")
    assert scheduler.overdue() == []


def test_a_wedged_duty_is_found_and_gets_a_new_thread(make_scheduler: MakeScheduler) -> None:
    release = threading.Event()
    duty, other = Duty(release.wait), Duty()
    scheduler = make_scheduler(
        CriticalJob(name="wedged", interval_s=0.001, run=duty),
        CriticalJob(name="other", interval_s=0.001, run=other),
    )
    wait_for(lambda: "wedged" in scheduler.overdue(patience=1, slack_s=0.2), "the finding")
    old = scheduler._threads["wedged"]
    scheduler.repair("wedged")
    wait_for(lambda: duty.turns >= 2, "turns of the new thread")
    release.set()
    wait_for(lambda: not old.is_alive(), "the end of the old thread")
    turns = duty.turns
    wait_for(lambda: duty.turns > turns, "another turn of the new thread")
    assert scheduler._threads["wedged"].is_alive()


def test_a_duty_whose_thread_has_died_is_found(sqlite_engine: Engine) -> None:
    duty = Duty()
    scheduler = Scheduler(sqlite_engine, [CriticalJob(name="duty", interval_s=NEVER_S, run=duty)])
    assert scheduler.overdue() == ["duty"]
    scheduler.start()
    assert scheduler.overdue() == []
    scheduler.stop(within_s=WITHIN_S)
    assert scheduler.overdue() == ["duty"]


def test_stopping_ends_every_thread_also_those_that_wait_long(sqlite_engine: Engine) -> None:
    duties = [Duty() for _ in range(3)]
    jobs = [CriticalJob(name=f"duty-{number}", interval_s=NEVER_S, run=duty) for number, duty in enumerate(duties)]
    scheduler = Scheduler(sqlite_engine, jobs)
    scheduler.start()
    wait_for(lambda: all(duty.turns == 1 for duty in duties), "the first turns")
    scheduler.stop(within_s=WITHIN_S)
    assert not any(thread.is_alive() for thread in scheduler._threads.values())
    assert [duty.turns for duty in duties] == [1, 1, 1]


# --- the database -------------------------------------------------------------------------------------------------


def test_one_node_of_a_cluster_does_a_duty_that_is_for_all(make_scheduler: MakeScheduler, engine: Engine) -> None:
    shared, own = [Duty(), Duty()], [Duty(), Duty()]
    for number in range(2):
        make_scheduler(
            CriticalJob(name="shared", interval_s=NEVER_S, run=shared[number], for_each_node=False),
            CriticalJob(name="own", interval_s=NEVER_S, run=own[number]),
            engine=engine,
        )
    wait_for(lambda: [duty.turns for duty in own] == [1, 1], "each node's own turn")
    wait_for(lambda: (row := facts(engine, "shared")) and row.runs == 1, "the shared turn")
    assert sum(duty.turns for duty in shared) == 1


def test_a_database_that_cannot_be_written_stops_no_duty(sqlite_engine: Engine, make_scheduler: MakeScheduler) -> None:
    """Nor does it delay one by the 15 s that others wait for the lock: twice that, and FulcrumCore gives us up."""
    duty = Duty()
    with closing(sqlite3.connect(str(sqlite_engine.url.database), isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        make_scheduler(CriticalJob(name="duty", interval_s=OFTEN_S, run=duty))
        wait_for(lambda: duty.turns >= 3, "three turns")
        assert facts(sqlite_engine, "duty") is None
        holder.execute("ROLLBACK")
    wait_for(lambda: facts(sqlite_engine, "duty"), "the row")


def test_a_turn_is_written_down_before_it_begins(make_scheduler: MakeScheduler, sqlite_engine: Engine) -> None:
    seen = []

    def look() -> None:
        row = facts(sqlite_engine, "duty")
        seen.append((row.last_started_at is not None, row.last_finished_at, row.runs))

    make_scheduler(CriticalJob(name="duty", interval_s=NEVER_S, run=Duty(look)))
    wait_for(lambda: seen, "the turn")
    assert seen == [(True, None, 0)]


def test_an_interval_that_was_changed_counts_at_once(engine: Engine, make_scheduler: MakeScheduler) -> None:
    with transaction(engine) as session:
        periods.try_start_period(session, "duty", NEVER_S)
    duty = Duty()
    make_scheduler(CriticalJob(name="duty", interval_s=60.0, run=duty, for_each_node=False), engine=engine)
    wait_for(lambda: duty.turns == 1, "the turn")
