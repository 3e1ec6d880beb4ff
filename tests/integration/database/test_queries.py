"""Queries about jobs and runs, on SQLite and on PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session
from support.databases import new_job, submit
from support.job_steps import claimed, ended, finish, requeue

from executor.database import job_queue, job_runs, queries, run_queries
from executor.database.engine import read_only_session, transaction


def test_the_open_job_of_a_service_is_the_processing_one(engine: Engine) -> None:
    service_id = str(uuid.uuid4())
    with read_only_session(engine) as session:
        assert queries.find_open_job(session, service_id) is None
    first, _second = submit(engine, service_id=service_id, age=1), submit(engine, service_id=service_id, age=2)
    assert claimed(engine).id == first
    with read_only_session(engine) as session:
        found = queries.find_open_job(session, service_id)
    assert found is not None
    assert found.id == first


def test_without_a_processing_job_the_open_job_of_a_service_is_its_oldest_pending_one(engine: Engine) -> None:
    service_id = str(uuid.uuid4())
    submit(engine, age=0)
    ended_job = submit(engine, service_id=service_id, age=1)
    waiting = [submit(engine, service_id=service_id, age=age) for age in (2, 3)]
    claimed(engine)
    job = claimed(engine)
    assert job.id == ended_job
    finish(engine, job)
    with read_only_session(engine) as session:
        found = queries.find_open_job(session, service_id)
    assert found is not None
    assert found.id == waiting[0]
    requeued = claimed(engine)
    requeue(engine, requeued, backoff_s=3600)
    running = claimed(engine)
    assert (requeued.id, running.id) == (waiting[0], waiting[1])
    with read_only_session(engine) as session:
        found = queries.find_open_job(session, service_id)
    assert found is not None
    assert found.id == running.id


def test_the_runs_of_a_job_are_returned_in_order_without_those_of_others(engine: Engine) -> None:
    for _ in range(2):
        submit(engine)
    job, other = claimed(engine), claimed(engine)
    with transaction(engine) as session:
        for ident, job_of_run in (("b-1", job), ("x-1", other), ("a-2", job)):
            job_runs.store_run_start(session, job_queue.lease_of(job_of_run), run_ident=ident, playbook="create.yml")
    with read_only_session(engine) as session:
        assert [run.ident for run in run_queries.runs_of_job(session, job.id)] == ["b-1", "a-2"]


FULCRUM_ID = "12345678-aaaa-4000-8000-000000000001"

OTHER_FULCRUM_ID = "12345678-bbbb-4000-8000-000000000002"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (FULCRUM_ID, FULCRUM_ID),
        (FULCRUM_ID.upper(), FULCRUM_ID),
        ("12345678-a", FULCRUM_ID),
        ("12345678", None),  # the beginning of both ids
        ("12345678-c", None),
        ("%", None),
        ("12345678-a%", None),
        ("1234567_-a", None),
        ("\\", None),
        ("", None),
        ("²", None),  # a digit to str.isdigit, no number to int
        ("9" * 30, None),  # beyond every integer column
        ("9" * 5000, None),  # beyond what Python converts
        ("-1", None),
    ],
)
def test_a_job_is_found_by_an_unambiguous_reference_only(engine: Engine, reference: str, expected: str | None) -> None:
    submit(engine, fulcrum_id=FULCRUM_ID)
    submit(engine, fulcrum_id=OTHER_FULCRUM_ID)
    with read_only_session(engine) as session:
        job = queries.find_job(session, reference)
    assert (job.fulcrum_id if job else None) == expected


def test_a_job_is_found_by_the_id_of_its_row(engine: Engine) -> None:
    job_id = submit(engine)
    with read_only_session(engine) as session:
        found = queries.find_job(session, str(job_id))
        assert found is not None
        assert found.id == job_id
        assert queries.find_job(session, "2147483648") is None  # beyond PostgreSQL's integers
        assert queries.find_job(session, str(job_id + 1_000_000_000)) is None  # no beginning of a UUID either


def test_an_empty_reference_does_not_find_the_only_job(engine: Engine) -> None:
    """`smith jobs cancel "$UNSET"` must not cancel anything."""
    submit(engine)
    with read_only_session(engine) as session:
        assert [queries.find_job(session, pattern) for pattern in ("", "%", "_")] == [None, None, None]


def test_an_empty_database_counts_no_jobs(engine: Engine) -> None:
    with read_only_session(engine) as session:
        assert set(queries.count_jobs(session).values()) == {0}
        assert queries.count_jobs(session, should_count_ended_jobs=False) == queries.count_jobs(session)


def test_a_list_has_fifty_rows_by_default(engine: Engine) -> None:
    with transaction(engine) as session:
        for _ in range(52):
            job_queue.submit(session, new_job())
    with read_only_session(engine) as session:
        assert (len(queries.list_jobs(session)), len(queries.list_jobs(session, limit=60))) == (50, 52)


def test_a_list_has_the_newest_jobs_that_match(engine: Engine) -> None:
    service = str(uuid.uuid4())
    done = ended(engine, service_id=service, action="stop")
    waiting = submit(engine, service_id=service, action="start")
    other = submit(engine, action="start")
    with read_only_session(engine) as session:

        def ids(**filters: Any) -> list[int]:
            return [job.id for job in queries.list_jobs(session, **filters)]

        assert ids() == [other, waiting, done]
        assert ids(limit=1) == [other]
        assert ids(statuses=["pending"]) == [other, waiting]
        assert ids(statuses=["processing"]) == []
        assert ids(statuses=["completed"]) == [done]
        assert ids(statuses=["processing", "pending"]) == [other, waiting]
        assert ids(statuses=["completed", "pending"]) == [other, waiting, done]
        assert ids(action="start", service_ids=[service]) == [waiting]
        assert ids(service_ids=[]) == []
        assert ids(before_id=other) == [waiting, done]
        assert ids(only_unreported=True) == [done]
        assert queries.count_jobs(session) == {
            "pending": 2,
            "processing": 0,
            "completed": 1,
            "failed": 0,
            "reports_due": 1,
        }


@pytest.mark.parametrize(
    ("read", "index"),
    [
        (partial(queries.list_jobs, statuses=["pending"]), "ix_jobs_to_claim"),
        (partial(queries.list_jobs, statuses=["processing"]), "ix_jobs_one_processing_per_service"),
        (partial(queries.list_jobs, only_unreported=True), "ix_jobs_to_report"),
        (partial(queries.jobs_with_postponed_report, limit=10), "ix_jobs_to_report"),
        (partial(queries.jobs_claimed_elsewhere, limit=10), "ix_jobs_claimed_elsewhere"),
    ],
)
def test_a_list_of_open_or_unreported_jobs_is_read_from_a_partial_index(
    sqlite_engine: Engine, read: Callable[[Session], object], index: str
) -> None:
    """A list that is read by the primary key would read every ended job if fewer jobs match than the limit."""
    statements: list[tuple[str, Any]] = []

    def record(_connection: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
        statements.append((statement, values))

    with read_only_session(sqlite_engine) as session:
        event.listen(sqlite_engine, "before_cursor_execute", record)
        read(session)
        event.remove(sqlite_engine, "before_cursor_execute", record)
        ((statement, values),) = [executed for executed in statements if executed[0].startswith("SELECT")]
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
        steps = [row[-1] for row in plan]
    assert any(index in step for step in steps), steps
    assert not any(step.startswith("SCAN jobs") and "INDEX" not in step for step in steps), steps
