"""Critical jobs on real threads: none delays another, none ends after a failure, and no two turns overlap."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import structlog
from sqlalchemy import Engine, event
from support.databases import PostgresCluster

from executor.agent.critical_job import CriticalJob
from executor.agent.execution_recorder import MAX_UNSTORED_S, ExecutionRecorder
from executor.agent.scheduler import MAX_OUTAGE_DELAY_S, MAX_RETRY_AFTER_S, Scheduler, delay_after_failure_s
from executor.agent.state import Link, fulcrum_events
from executor.database import periods, queries
from executor.database.engine import reading, transaction
from executor.errors import FulcrumUnavailable, JobError
from executor.shared.error_codes import ErrorCode

WITHIN_S = 30.0
OFTEN_S = 0.02
#: An interval that no test waits for.
NEVER_S = 3600.0
MakeScheduler = Callable[..., Scheduler]


def wait_for(is_so: Callable[[], object], what: str) -> None:
    """Wait until the condition is true; fail after a timeout."""
    limit = time.monotonic() + WITHIN_S
    while not is_so():
        assert time.monotonic() < limit, f"{what} never happened"
        time.sleep(0.005)


class FakeJob:
    """The work of a critical job: counts its turns, and returns, calls or raises the given answers."""

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
    """Return a maker of running schedulers; they are stopped at the end.

    A test names it after its engine, so that they are stopped before the connections of the engine are closed.
    """
    made: list[Scheduler] = []

    def make(*jobs: CriticalJob, engine: Engine = sqlite_engine) -> Scheduler:
        made.append(Scheduler(engine, jobs))
        made[-1].start()
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.stop(timeout_s=WITHIN_S)


def facts(engine: Engine, name: str) -> Any:
    """Return a critical job's row, None before there is one."""
    with reading(engine) as session:
        return next((row for row in queries.critical_jobs(session) if row.name == name), None)


def test_every_job_takes_its_first_turn_at_once_and_repeats(make_scheduler: MakeScheduler) -> None:
    often, rarely = FakeJob(), FakeJob()
    make_scheduler(
        CriticalJob(name="often", interval_s=OFTEN_S, run=often),
        CriticalJob(name="rarely", interval_s=NEVER_S, run=rarely),
    )
    wait_for(lambda: often.turns >= 3 and rarely.turns == 1, "both jobs")


def test_a_job_that_hangs_delays_no_other(make_scheduler: MakeScheduler) -> None:
    release = threading.Event()
    stuck, other = FakeJob(release.wait), FakeJob()
    make_scheduler(
        CriticalJob(name="stuck", interval_s=OFTEN_S, run=stuck),
        CriticalJob(name="other", interval_s=OFTEN_S, run=other),
    )
    wait_for(lambda: other.turns >= 5, "the other job")
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
def test_a_failed_turn_is_stored_and_the_next_one_follows(
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
    link = Link(fulcrum_events())
    make_scheduler(
        CriticalJob(name="fake", interval_s=NEVER_S, run=FakeJob(FulcrumUnavailable("no route")), link=link),
    )
    wait_for(lambda: not link.is_up, "the outage")
    assert link.reason == "no route"


def test_waking_a_job_starts_a_turn_at_once(make_scheduler: MakeScheduler) -> None:
    fake = FakeJob()
    scheduler = make_scheduler(CriticalJob(name="fake", interval_s=NEVER_S, run=fake))
    for turn in range(1, 4):
        wait_for(lambda turn=turn: fake.turns == turn, f"turn {turn}")
        scheduler.jobs["fake"].wake_requested.set()


def test_a_wake_during_a_turn_starts_another_turn_after_it(make_scheduler: MakeScheduler) -> None:
    release = threading.Event()
    fake = FakeJob(release.wait)
    scheduler = make_scheduler(CriticalJob(name="fake", interval_s=NEVER_S, run=fake))
    wait_for(lambda: fake.at_once == 1, "the first turn")
    scheduler.jobs["fake"].wake_requested.set()
    release.set()
    wait_for(lambda: fake.turns == 2, "the second turn")


def test_turns_of_one_job_never_overlap(make_scheduler: MakeScheduler) -> None:
    fake = FakeJob(*[lambda: time.sleep(0.002)] * 50)
    scheduler = make_scheduler(CriticalJob(name="fake", interval_s=0.001, run=fake))
    wake = scheduler.jobs["fake"].wake_requested
    callers = [threading.Thread(target=lambda: [wake.set() for _ in range(2000)]) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    wait_for(lambda: fake.turns >= 10, "ten turns")
    assert fake.most_at_once == 1


def test_a_job_may_request_an_earlier_turn(make_scheduler: MakeScheduler) -> None:
    """Sooner than its interval; 0 means at once, not "after the interval"."""
    soon, at_once = FakeJob(OFTEN_S, OFTEN_S, OFTEN_S), FakeJob(0.0, 0.0, 0.0)
    make_scheduler(
        CriticalJob(name="soon", interval_s=NEVER_S, run=soon),
        CriticalJob(name="at once", interval_s=NEVER_S, run=at_once),
    )
    wait_for(lambda: (soon.turns, at_once.turns) == (4, 4), "three early turns")


def test_a_job_may_request_a_later_turn(make_scheduler: MakeScheduler) -> None:
    patient, other = FakeJob(NEVER_S), FakeJob()
    make_scheduler(
        CriticalJob(name="patient", interval_s=0.001, run=patient),
        CriticalJob(name="other", interval_s=0.001, run=other),
    )
    wait_for(lambda: other.turns >= 10, "ten turns of the other")
    assert patient.turns == 1


def test_a_wait_that_fulcrumcore_requests_delays_the_next_turn(make_scheduler: MakeScheduler) -> None:
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
    delays = [delay_after_failure_s(2, FulcrumUnavailable("503"), count) for count in (1, 2, 3, 4, 10_000)]
    assert delays == [2, 4, MAX_OUTAGE_DELAY_S, MAX_OUTAGE_DELAY_S, MAX_OUTAGE_DELAY_S]
    assert [delay_after_failure_s(10, FulcrumUnavailable("503"), count) for count in (1, 5)] == [10, 10]
    assert delay_after_failure_s(2, FulcrumUnavailable("429", retry_after_s=15), 9) == 15


def test_failures_in_a_row_are_counted_and_the_first_answer_wakes_the_others(make_scheduler: MakeScheduler) -> None:
    link = Link(fulcrum_events())
    down = [FulcrumUnavailable("no route") for _ in range(3)]
    polling, beating = FakeJob(*down), FakeJob(*down)
    poll = CriticalJob(name="poll", interval_s=OFTEN_S, run=polling, link=link)
    heartbeat = CriticalJob(name="heartbeat", interval_s=NEVER_S, run=beating, link=link)
    link.recovery_events.append(heartbeat.wake_requested)
    make_scheduler(poll, heartbeat)
    wait_for(lambda: polling.turns >= 4 and poll.outage_failure_count == 0, "a poll that succeeds")
    assert beating.turns == 1
    link.note_up()
    wait_for(lambda: beating.turns == 2, "the heartbeat after the recovery")


@pytest.mark.usefixtures("zone")
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
def zone() -> Iterator[None]:
    """Set a time zone far in the east; restore the previous one."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "<+12>-12"
    time.tzset()
    yield
    os.environ.pop("TZ", None)
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


# --- overdue and repair -------------------------------------------------------------------------------------------


def test_a_job_that_takes_its_turns_is_not_overdue(make_scheduler: MakeScheduler) -> None:
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
    wait_for(lambda: "stuck" in scheduler.overdue_critical_jobs(max_intervals=1, slack_s=0.2), "the finding")
    old = scheduler._threads["stuck"]
    scheduler.restart("stuck")
    wait_for(lambda: fake.turns >= 2, "turns of the new thread")
    release.set()
    wait_for(lambda: not old.is_alive(), "the end of the old thread")
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


# --- the database -------------------------------------------------------------------------------------------------


def test_a_shared_job_runs_on_one_node_only(engine: Engine, make_scheduler: MakeScheduler) -> None:
    shared, own = [FakeJob(), FakeJob()], [FakeJob(), FakeJob()]
    for number in range(2):
        make_scheduler(
            CriticalJob(name="shared", interval_s=NEVER_S, run=shared[number], runs_on_each_agent=False),
            CriticalJob(name="own", interval_s=NEVER_S, run=own[number]),
            engine=engine,
        )
    wait_for(lambda: [fake.turns for fake in own] == [1, 1], "each node's own turn")
    wait_for(lambda: (row := facts(engine, "shared")) and row.runs == 1, "the shared turn")
    assert sum(fake.turns for fake in shared) == 1


def test_the_other_nodes_run_their_own_part_of_a_shared_job(engine: Engine, make_scheduler: MakeScheduler) -> None:
    """Each machine has artifacts of its own, which only its own agent can delete."""
    whole, part = [FakeJob(), FakeJob()], [FakeJob(), FakeJob()]
    for number in range(2):
        make_scheduler(
            CriticalJob(
                name="shared",
                interval_s=NEVER_S,
                run=whole[number],
                run_own_part=part[number],
                runs_on_each_agent=False,
            ),
            engine=engine,
        )
    wait_for(lambda: sum(fake.turns for fake in whole + part) == 2, "one turn of each node")
    assert sorted((whole[number].turns, part[number].turns) for number in range(2)) == [(0, 1), (1, 0)]


def test_a_node_that_may_not_start_leaves_a_shared_job_to_the_others(
    engine: Engine, make_scheduler: MakeScheduler
) -> None:
    """A draining node must not take the poll, and then not poll."""
    draining, other = FakeJob(), FakeJob()
    shared = {"name": "shared", "interval_s": NEVER_S, "runs_on_each_agent": False}
    scheduler = make_scheduler(CriticalJob(run=draining, may_start=lambda: False, **shared), engine=engine)
    wait_for(lambda: scheduler.jobs["shared"].finished_at > scheduler.jobs["shared"].started_at, "a turn without work")
    make_scheduler(CriticalJob(run=other, **shared), engine=engine)
    wait_for(lambda: other.turns == 1, "the turn of the other node")
    assert draining.turns == 0


def test_a_requested_turn_of_a_shared_job_starts_at_once(engine: Engine, make_scheduler: MakeScheduler) -> None:
    """After a report, FulcrumCore may offer the group's next job: the node that has reported polls at once."""
    fakes = [FakeJob(), FakeJob()]
    schedulers = [
        make_scheduler(
            CriticalJob(
                name="shared", interval_s=NEVER_S, run=fake, runs_on_each_agent=False, starts_early_on_request=True
            ),
            engine=engine,
        )
        for fake in fakes
    ]
    wait_for(lambda: sum(fake.turns for fake in fakes) == 1, "the first turn")
    for fake, scheduler in zip(fakes, schedulers, strict=True):
        turns = fake.turns
        scheduler.jobs["shared"].wake_requested.set()
        wait_for(lambda fake=fake, turns=turns: fake.turns == turns + 1, "the requested turn")


def test_a_hung_server_delays_no_job_of_each_agent(
    postgres: PostgresCluster, postgres_engine: Engine, make_scheduler: MakeScheduler
) -> None:
    """The first start, too, is stored only after the execution."""
    fake = FakeJob()
    with postgres.suspended():
        scheduler = make_scheduler(CriticalJob(name="fake", interval_s=OFTEN_S, run=fake), engine=postgres_engine)
        wait_for(lambda: fake.turns >= 3, "three turns")
        scheduler.jobs["fake"].run = FakeJob(OSError("full"))  # a failure is stored at once
        wait_for(lambda: scheduler.jobs["fake"].last_error, "the failure")
        scheduler.jobs["fake"].run = later = FakeJob()
        wait_for(lambda: later.turns >= 3, "turns after the failure")
    wait_for(lambda: facts(postgres_engine, "fake"), "the row")


def test_a_locked_database_stops_no_job(sqlite_engine: Engine, make_scheduler: MakeScheduler) -> None:
    """Nor does it delay one by the usual lock timeout of 15 s: after 30 s FulcrumCore gives the agent up."""
    fake = FakeJob()
    with closing(sqlite3.connect(str(sqlite_engine.url.database), isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        make_scheduler(CriticalJob(name="fake", interval_s=OFTEN_S, run=fake))
        wait_for(lambda: fake.turns >= 3, "three turns")
        assert facts(sqlite_engine, "fake") is None
        holder.execute("ROLLBACK")
    wait_for(lambda: facts(sqlite_engine, "fake"), "the row")


def test_the_start_of_a_turn_that_only_one_agent_takes_is_stored_before_it(
    make_scheduler: MakeScheduler, sqlite_engine: Engine
) -> None:
    seen = []

    def look() -> None:
        row = facts(sqlite_engine, "fake")
        seen.append((row.last_started_at is not None, row.last_finished_at, row.runs))

    make_scheduler(CriticalJob(name="fake", interval_s=NEVER_S, run=FakeJob(look), runs_on_each_agent=False))
    wait_for(lambda: seen, "the turn")
    assert seen == [(True, None, 0)]


def test_a_changed_interval_takes_effect_at_once(engine: Engine, make_scheduler: MakeScheduler) -> None:
    with transaction(engine) as session:
        periods.try_start_period(session, "fake", NEVER_S)
    fake = FakeJob()
    make_scheduler(CriticalJob(name="fake", interval_s=60.0, run=fake, runs_on_each_agent=False), engine=engine)
    wait_for(lambda: fake.turns == 1, "the turn")


# --- how often results are stored ---------------------------------------------------------------------------------


class Writes:
    """Counts the transactions that write to the database."""

    def __init__(self, engine: Engine) -> None:
        self.count = 0
        event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, _connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        self.count += statement == "BEGIN IMMEDIATE"


def wake_until(scheduler: Scheduler, fake: FakeJob, turns: int) -> None:
    while fake.turns < turns:
        before = fake.turns
        scheduler.jobs["fake"].wake_requested.set()
        wait_for(lambda before=before: fake.turns > before, "a turn")


def test_successful_turns_in_a_short_time_are_stored_together(sqlite_engine: Engine) -> None:
    """An idle agent polls every 2 s; each write to SQLite waits for the disk."""
    fake, writes = FakeJob(), Writes(sqlite_engine)
    scheduler = Scheduler(sqlite_engine, [CriticalJob(name="fake", interval_s=NEVER_S, run=fake)])
    scheduler.start()
    wait_for(lambda: (row := facts(sqlite_engine, "fake")) and row.runs == 1, "the first result")
    assert writes.count == 1
    wake_until(scheduler, fake, 6)
    assert (writes.count, facts(sqlite_engine, "fake").runs) == (1, 1)
    started_before = facts(sqlite_engine, "fake").last_started_at
    scheduler.stop(timeout_s=WITHIN_S)
    row = facts(sqlite_engine, "fake")
    assert (writes.count, row.runs, row.failures, row.last_error) == (2, 6, 0, None)
    assert row.last_started_at > started_before


def test_a_result_that_is_too_old_is_stored_in_one_transaction(
    sqlite_engine: Engine, make_scheduler: MakeScheduler
) -> None:
    fake, writes = FakeJob(), Writes(sqlite_engine)
    scheduler = make_scheduler(CriticalJob(name="fake", interval_s=NEVER_S, run=fake))
    wait_for(lambda: (row := facts(sqlite_engine, "fake")) and row.runs == 1, "the first result")
    wake_until(scheduler, fake, 3)
    scheduler.jobs["fake"].stored_at -= MAX_UNSTORED_S
    wake_until(scheduler, fake, 4)
    wait_for(lambda: facts(sqlite_engine, "fake").runs == 4, "the result")
    assert writes.count == 2


def test_a_failure_and_the_success_after_it_are_stored_at_once(
    sqlite_engine: Engine, make_scheduler: MakeScheduler
) -> None:
    fake = FakeJob(None, None, OSError("full"), None)
    scheduler = make_scheduler(CriticalJob(name="fake", interval_s=NEVER_S, run=fake))
    wait_for(lambda: fake.turns == 1, "the first turn")
    wake_until(scheduler, fake, 3)
    wait_for(lambda: (row := facts(sqlite_engine, "fake")) and row.failures == 1, "the failure")
    assert (facts(sqlite_engine, "fake").runs, facts(sqlite_engine, "fake").last_error) == (3, "full")
    wake_until(scheduler, fake, 4)
    wait_for(lambda: facts(sqlite_engine, "fake").failures == 0, "the success")
    assert (facts(sqlite_engine, "fake").runs, facts(sqlite_engine, "fake").last_error) == (4, None)


def test_a_turn_that_only_one_agent_takes_is_stored_at_once(
    sqlite_engine: Engine, make_scheduler: MakeScheduler
) -> None:
    """Its start decides which agent runs it."""
    fake = FakeJob()
    make_scheduler(CriticalJob(name="fake", interval_s=OFTEN_S, run=fake, runs_on_each_agent=False))
    wait_for(lambda: (row := facts(sqlite_engine, "fake")) and row.runs >= 3, "three stored turns")


def test_the_end_of_a_failure_is_logged_even_if_an_outage_came_between(make_scheduler: MakeScheduler) -> None:
    fake = FakeJob(OSError("full"), FulcrumUnavailable("no route"), OSError("full"), FulcrumUnavailable("no route"))
    with structlog.testing.capture_logs() as logs:
        scheduler = make_scheduler(CriticalJob(name="fake", interval_s=NEVER_S, run=fake))
        wait_for(lambda: fake.turns == 1, "the first turn")
        wake_until(scheduler, fake, 6)
        scheduler.stop(timeout_s=WITHIN_S)
    events = [entry["event"] for entry in logs if entry["event"].startswith("critical_job")]
    assert events == ["critical_job_failed", "critical_job_recovered"]


def test_an_execution_that_two_threads_store_at_shutdown_is_counted_once(sqlite_engine: Engine) -> None:
    """The thread of the job begins to store the execution when the recorder stops and stores all executions."""
    job = CriticalJob(name="Prune", interval_s=NEVER_S, run=FakeJob(), runs_on_each_agent=False)
    recorder = ExecutionRecorder(sqlite_engine, [job])
    recorder.start()
    assert recorder.try_start_period(job)
    begun, release = threading.Event(), threading.Event()

    def hold(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement == "BEGIN IMMEDIATE" and threading.current_thread() is storing:
            begun.set()
            release.wait(WITHIN_S)

    event.listen(sqlite_engine, "before_cursor_execute", hold)
    storing = threading.Thread(target=recorder.note_execution, args=(job,))
    storing.start()
    assert begun.wait(WITHIN_S)
    recorder.stop(WITHIN_S)
    release.set()
    storing.join()

    assert facts(sqlite_engine, "Prune").runs == 1
    assert job.unstored_count == 0
