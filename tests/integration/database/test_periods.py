"""The periods of critical jobs, on SQLite and on PostgreSQL.

A period of a critical job starts with an execution, and ends when the next execution is due. If several agents try to
start the same period, one of them succeeds, and only this agent executes the job.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from executor.database import agent_queries, periods
from executor.database.engine import read_only_session, transaction
from executor.database.tables.agents import CriticalJob
from executor.database.times import db_now, utc_now


def test_a_period_starts_once(engine: Engine) -> None:
    with transaction(engine) as session:
        first = periods.try_start_period(session, "prune", 3600)
        assert (first, periods.try_start_period(session, "prune", 3600)) == (True, False)
    with transaction(engine) as session:
        session.execute(update(CriticalJob).values(due_at=db_now(-1)))
        assert periods.try_start_period(session, "prune", 3600)


def test_a_period_ends_a_little_early_for_timers_that_fire_early(engine: Engine) -> None:
    with transaction(engine) as session:
        periods.try_start_period(session, "prune", 1000)
        early = select(CriticalJob.due_at <= db_now(801), CriticalJob.due_at <= db_now(790))
        assert session.execute(early).one() == (True, False)


def test_after_the_clock_was_set_back_a_period_starts(engine: Engine) -> None:
    """Then the earlier period would end more than a whole interval from now, so its end is ignored."""
    with transaction(engine) as session:
        periods.try_start_period(session, "prune", 1000)
        session.execute(update(CriticalJob).values(due_at=db_now(1100)))
        assert periods.try_start_period(session, "prune", 1000)
        assert not periods.try_start_period(session, "prune", 1000)


def test_a_period_with_a_new_interval_starts_at_once(engine: Engine) -> None:
    with transaction(engine) as session:
        periods.try_start_period(session, "prune", 3600)
        assert periods.try_start_period(session, "prune", 60, is_first=True)
        assert not periods.try_start_period(session, "prune", 60)


def set_period_end(session: Session, seconds: float) -> None:
    """Let the current period end this number of seconds from now; with a negative number, it has already ended."""
    session.execute(update(CriticalJob).values(due_at=db_now(seconds)))


def test_with_different_intervals_each_period_still_starts_once(engine: Engine) -> None:
    """If two agents with different intervals call in turns, not each of their calls starts a period."""
    with transaction(engine) as session:
        assert periods.try_start_period(session, "prune", 600)
        assert not periods.try_start_period(session, "prune", 60)
        set_period_end(session, 480 - 50)  # the period of the agent with the longer interval started 50 s ago
        assert periods.try_start_period(session, "prune", 60)
        assert not periods.try_start_period(session, "prune", 600)
        set_period_end(session, -1)
        assert periods.try_start_period(session, "prune", 600)


def test_a_requested_period_starts_before_the_previous_one_is_over(engine: Engine) -> None:
    with transaction(engine) as session:
        assert periods.try_start_period(session, "poll", 3600)
        assert periods.try_start_period(session, "poll", 3600, is_requested=True)
        assert not periods.try_start_period(session, "poll", 3600)


def test_an_agent_whose_last_execution_failed_waits_until_another_agent_starts_the_period(engine: Engine) -> None:
    with transaction(engine) as session:
        assert periods.try_start_period(session, "poll", 100)
        set_period_end(session, -150)
        assert not periods.try_start_period(session, "poll", 100, waits_for_other_agents=True)
        assert periods.try_start_period(session, "poll", 100)
        set_period_end(session, -250)  # so long ago that no other agent exists, or that all fail
        assert periods.try_start_period(session, "poll", 100, waits_for_other_agents=True)


def test_of_simultaneous_callers_one_starts_the_period(engine: Engine) -> None:
    """This holds for the first period, too, whose row does not exist yet: agents may start at the same time."""
    start = threading.Barrier(6, timeout=60)

    def start_periods(_: int) -> list[bool]:
        started = []
        for name in ("one", "two", "three", "four"):
            start.wait()
            with transaction(engine) as session:
                started.append(periods.try_start_period(session, name, 3600))
        return started

    with ThreadPoolExecutor(6) as pool:
        started = list(pool.map(start_periods, range(6)))
    assert [sum(of_period) for of_period in zip(*started, strict=True)] == [1, 1, 1, 1]


def test_a_first_period_does_not_depend_on_this_machines_clock(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent whose clock is an hour ahead of the database's clock must not wait an hour."""
    monkeypatch.setattr(periods, "utc_now", lambda: utc_now() + timedelta(hours=1))
    with transaction(engine) as session:
        assert periods.try_start_period(session, "prune", 3600)


def test_the_executions_and_the_consecutive_failures_of_a_critical_job_are_counted(engine: Engine) -> None:
    with transaction(engine) as session:
        periods.try_start_period(session, "poll", 2)
        for error in ("no route", "no route", None, "refused"):
            periods.record_period_result(session, "poll", error=error)
    with read_only_session(engine) as session:
        (critical,) = agent_queries.list_critical_jobs(session)
    assert (critical.runs, critical.failures, critical.last_error) == (4, 1, "refused")
    assert critical.last_ok_at is not None


@pytest.mark.parametrize("error", [None, "refused"])
def test_several_executions_of_one_agent_are_stored_together(engine: Engine, error: str | None) -> None:
    """Only the last of these executions may have failed."""
    started_at = utc_now() - timedelta(minutes=1)
    with transaction(engine) as session:
        for name in ("beat", "poll"):
            periods.record_executions(session, name, 10, started_at=started_at, execution_count=3, error="no route")
        periods.record_executions(session, "beat", 1000, started_at=started_at, execution_count=2, error=error)
        is_due = select(CriticalJob.due_at <= db_now(801), CriticalJob.due_at <= db_now(790))
        assert session.execute(is_due.where(CriticalJob.name == "beat")).one() == (True, False)
    with read_only_session(engine) as session:
        jobs = {job.name: job for job in agent_queries.list_critical_jobs(session)}
        beat, poll = jobs["beat"], jobs["poll"]
    assert (beat.runs, beat.failures, beat.last_error) == (5, 0 if error is None else 2, error)
    assert (beat.interval_s, beat.last_started_at, beat.last_ok_at is not None) == (1000, started_at, error is None)
    assert beat.last_finished_at is not None
    assert (poll.runs, poll.failures, poll.last_error, poll.interval_s) == (3, 1, "no route", 10)


def test_a_new_critical_job_has_started_and_has_no_failures(engine: Engine) -> None:
    before = utc_now()
    with transaction(engine) as session:
        for name in ("poll", "beat", "prune"):
            periods.try_start_period(session, name, 2)
    with read_only_session(engine) as session:
        rows = agent_queries.list_critical_jobs(session)
    assert [row.name for row in rows] == ["beat", "poll", "prune"]
    assert {(row.failures, row.runs, row.interval_s) for row in rows} == {(0, 0, 2)}
    assert all(row.last_started_at is not None and before <= row.last_started_at <= utc_now() for row in rows)
