"""The scheduler and its database: jobs that only one of several agents executes, and when executions are stored.

A job is a critical job here. A shared job has `is_executed_by_each_process=False`: one agent executes it for all. A
`FakeJob` counts its executions (`turns`).
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from typing import Any

import structlog
from sqlalchemy import Engine, event
from support.databases import PostgresCluster
from support.scheduled_jobs import NEVER_S, OFTEN_S, WITHIN_S, FakeJob, MakeScheduler, facts, wait_for

from executor.agent.critical_job import CriticalJob
from executor.agent.execution_recorder import MAX_UNSTORED_S, ExecutionRecorder
from executor.agent.scheduler import Scheduler
from executor.database import periods
from executor.database.engine import transaction
from executor.errors import FulcrumUnavailable


def test_a_shared_job_is_executed_by_one_agent_only(engine: Engine, make_scheduler: MakeScheduler) -> None:
    shared, of_each_agent = [FakeJob(), FakeJob()], [FakeJob(), FakeJob()]
    for number in range(2):
        make_scheduler(
            CriticalJob(name="shared", interval_s=NEVER_S, run=shared[number], is_executed_by_each_process=False),
            CriticalJob(name="own", interval_s=NEVER_S, run=of_each_agent[number]),
            engine=engine,
        )
    wait_for(lambda: [fake.turns for fake in of_each_agent] == [1, 1], "one turn of each agent")
    wait_for(lambda: (row := facts(engine, "shared")) and row.runs == 1, "the shared turn")
    assert sum(fake.turns for fake in shared) == 1


def test_the_other_agents_execute_their_own_part_of_a_shared_job(engine: Engine, make_scheduler: MakeScheduler) -> None:
    """For example, each machine has artifacts of its own, which only the agent on this machine can delete."""
    whole, part = [FakeJob(), FakeJob()], [FakeJob(), FakeJob()]
    for number in range(2):
        make_scheduler(
            CriticalJob(
                name="shared",
                interval_s=NEVER_S,
                run=whole[number],
                run_if_other_process_executes=part[number],
                is_executed_by_each_process=False,
            ),
            engine=engine,
        )
    wait_for(lambda: sum(fake.turns for fake in whole + part) == 2, "one turn of each agent")
    assert sorted((whole[number].turns, part[number].turns) for number in range(2)) == [(0, 1), (1, 0)]


def test_a_shared_job_that_one_agent_may_not_start_is_executed_by_another_agent(
    engine: Engine, make_scheduler: MakeScheduler
) -> None:
    """For example, a draining agent must not record that it polls, and then not poll."""
    draining, other = FakeJob(), FakeJob()
    shared = {"name": "shared", "interval_s": NEVER_S, "is_executed_by_each_process": False}
    scheduler = make_scheduler(CriticalJob(run=draining, may_start=lambda: False, **shared), engine=engine)
    wait_for(lambda: scheduler.jobs["shared"].finished_at > scheduler.jobs["shared"].started_at, "a turn without work")
    make_scheduler(CriticalJob(run=other, **shared), engine=engine)
    wait_for(lambda: other.turns == 1, "the turn of the other agent")
    assert draining.turns == 0


def test_a_requested_execution_of_a_shared_job_starts_at_once(engine: Engine, make_scheduler: MakeScheduler) -> None:
    """After a report, FulcrumCore may list the group's next job. So the agent that has reported polls at once."""
    fakes = [FakeJob(), FakeJob()]
    schedulers = [
        make_scheduler(
            CriticalJob(
                name="shared",
                interval_s=NEVER_S,
                run=fake,
                is_executed_by_each_process=False,
                ignores_period_if_requested=True,
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


def test_a_hung_database_server_delays_no_job_that_each_agent_executes(
    postgres: PostgresCluster, postgres_engine: Engine, make_scheduler: MakeScheduler
) -> None:
    """Of such a job, even the first start is stored only after the execution."""
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
    """A job is not even delayed by the lock timeout of 15 s: after 30 s, FulcrumCore marks the agent disconnected."""
    fake = FakeJob()
    with closing(sqlite3.connect(str(sqlite_engine.url.database), isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        make_scheduler(CriticalJob(name="fake", interval_s=OFTEN_S, run=fake))
        wait_for(lambda: fake.turns >= 3, "three turns")
        assert facts(sqlite_engine, "fake") is None
        holder.execute("ROLLBACK")
    wait_for(lambda: facts(sqlite_engine, "fake"), "the row")


def test_the_start_of_a_shared_job_is_stored_before_its_execution(
    make_scheduler: MakeScheduler, sqlite_engine: Engine
) -> None:
    seen = []

    def read_row() -> None:
        row = facts(sqlite_engine, "fake")
        seen.append((row.last_started_at is not None, row.last_finished_at, row.runs))

    make_scheduler(
        CriticalJob(name="fake", interval_s=NEVER_S, run=FakeJob(read_row), is_executed_by_each_process=False)
    )
    wait_for(lambda: seen, "the turn")
    assert seen == [(True, None, 0)]


def test_a_changed_interval_takes_effect_at_once(engine: Engine, make_scheduler: MakeScheduler) -> None:
    with transaction(engine) as session:
        periods.try_start_period(session, "fake", NEVER_S)
    fake = FakeJob()
    make_scheduler(
        CriticalJob(name="fake", interval_s=60.0, run=fake, is_executed_by_each_process=False), engine=engine
    )
    wait_for(lambda: fake.turns == 1, "the turn")


class WriteCounter:
    """Counts the write transactions of an SQLite database."""

    def __init__(self, engine: Engine) -> None:
        self.count = 0
        event.listen(engine, "before_cursor_execute", self._count_write)

    def _count_write(self, _connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        self.count += statement == "BEGIN IMMEDIATE"


def wake_until(scheduler: Scheduler, fake: FakeJob, turns: int) -> None:
    """Wake the job again and again, until it has had this number of turns."""
    while fake.turns < turns:
        before = fake.turns
        scheduler.jobs["fake"].wake_requested.set()
        wait_for(lambda before=before: fake.turns > before, "a turn")


def test_successful_executions_in_a_short_time_are_stored_together(sqlite_engine: Engine) -> None:
    """An idle agent polls every 2 s, and each write to SQLite waits for the disk. So executions are stored together."""
    fake, writes = FakeJob(), WriteCounter(sqlite_engine)
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


def test_results_that_were_not_stored_for_long_are_stored_in_one_transaction(
    sqlite_engine: Engine, make_scheduler: MakeScheduler
) -> None:
    fake, writes = FakeJob(), WriteCounter(sqlite_engine)
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


def test_an_execution_of_a_shared_job_is_stored_at_once(sqlite_engine: Engine, make_scheduler: MakeScheduler) -> None:
    """The stored start decides which agent executes the job."""
    fake = FakeJob()
    make_scheduler(CriticalJob(name="fake", interval_s=OFTEN_S, run=fake, is_executed_by_each_process=False))
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
    job = CriticalJob(name="Prune", interval_s=NEVER_S, run=FakeJob(), is_executed_by_each_process=False)
    recorder = ExecutionRecorder(sqlite_engine, [job])
    recorder.start()
    assert recorder.try_start_period(job)
    begun, release = threading.Event(), threading.Event()

    def hold(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement == "BEGIN IMMEDIATE" and threading.current_thread() is storing:
            begun.set()
            release.wait(WITHIN_S)

    event.listen(sqlite_engine, "before_cursor_execute", hold)
    storing = threading.Thread(target=recorder.record_execution, args=(job,))
    storing.start()
    assert begun.wait(WITHIN_S)
    recorder.stop(WITHIN_S)
    release.set()
    storing.join()

    assert facts(sqlite_engine, "Prune").runs == 1
    assert job.unstored_execution_count == 0
