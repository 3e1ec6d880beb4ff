"""What an agent does while another process that uses the same PostgreSQL database is suspended within a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session
from support.databases import PostgresCluster, submit

from executor.agent.critical_job import CriticalJob
from executor.agent.execution_recorder import ExecutionRecorder
from executor.database import allocations, job_queue, manual_runs, periods, usage
from executor.database.engine import transaction
from executor.database.job_queue import CREATE_LIMIT_LOCK_KEY
from executor.database.postgresql import SESSION_SETTINGS, open_postgresql_engine
from executor.errors import DatabaseLocked, DatabaseUnavailable

OpenEngine = Callable[..., Engine]


@pytest.fixture
def open_engine_with(postgres: PostgresCluster) -> Iterator[OpenEngine]:
    """Return a function that opens the same empty database, with these limits in place of those of agents."""
    url = make_url(postgres.empty_shared_database())
    with ExitStack() as stack:

        def open_with(**settings: str) -> Engine:
            engine = open_postgresql_engine(
                url, pool_size=2, max_overflow=2, session_settings={**SESSION_SETTINGS, **settings}
            )
            stack.callback(engine.dispose)
            return engine

        yield open_with


def take_lock(session: Session, *key: Any) -> None:
    session.execute(select(func.pg_advisory_xact_lock(*key)))


def claim(session: Session) -> None:
    job_queue.claim(session, "me", lease_s=30, max_creates=1)


def reserve(session: Session) -> None:
    lease = job_queue.Lease(job_id=1, owner="me", epoch=1)
    usage.reserve(session, lease, None, usage.Amounts(), usage.Amounts())


@pytest.mark.parametrize(
    ("key", "work_with_lock"),
    [
        ((CREATE_LIMIT_LOCK_KEY,), claim),
        ((manual_runs.MANUAL_RUN_LOCK_KEY,), claim),
        ((allocations.LOCK_KEY,), allocations.lock_tables),
        ((usage.TENANT_LOCK_KEY, func.hashtext("")), reserve),
    ],
)
def test_the_wait_for_the_lock_of_another_process_ends_with_an_error(
    open_engine_with: OpenEngine, key: tuple[Any, ...], work_with_lock: Callable[[Session], None]
) -> None:
    suspended, waiting = open_engine_with(), open_engine_with(lock_timeout="100ms")
    with transaction(suspended) as holder:
        take_lock(holder, *key)
        with pytest.raises(DatabaseLocked), transaction(waiting) as session:
            work_with_lock(session)


@pytest.mark.parametrize(
    "limits", [{"idle_in_transaction_session_timeout": "100ms"}, {}], ids=["limit of 100 ms", "limits of agents"]
)
def test_a_process_that_is_suspended_within_a_transaction_loses_its_locks(
    open_engine_with: OpenEngine, limits: dict[str, str]
) -> None:
    """Otherwise no other agent could claim a job until this process continues. The other claim waits, and succeeds."""
    suspended, other = open_engine_with(**limits), open_engine_with()
    job_id = submit(other)

    def hold_locks() -> None:
        with transaction(suspended) as holder:
            take_lock(holder, CREATE_LIMIT_LOCK_KEY)
            with transaction(other) as session:
                claimed = job_queue.claim(session, "me", lease_s=30, max_creates=1)
            assert claimed is not None
            assert claimed.id == job_id
            holder.execute(select(1))

    with pytest.raises(DatabaseUnavailable):
        hold_locks()


def test_an_agent_starts_no_period_whose_row_another_process_has_locked(open_engine_with: OpenEngine) -> None:
    """Otherwise each agent would poll, prune and send metrics while one of them is suspended."""
    suspended, waiting = open_engine_with(), open_engine_with(lock_timeout="100ms")
    job = CriticalJob(name="PruneCompletedJobs", interval_s=60, run=lambda: None, is_executed_by_each_process=False)
    with transaction(suspended) as session:
        assert periods.try_start_period(session, job.name, job.interval_s)
    with transaction(suspended) as session:
        periods.record_period_result(session, job.name, error=None)
        session.flush()
        assert not ExecutionRecorder(waiting, [job]).try_start_period(job, is_requested=True)


def test_each_limit_of_a_session_is_longer_than_the_limit_that_must_end_first() -> None:
    """A statement waits for a lock until the server has ended the session of a suspended process, but not longer."""
    seconds = {name: int(value.removesuffix("s")) for name, value in SESSION_SETTINGS.items() if value.endswith("s")}
    assert seconds["idle_in_transaction_session_timeout"] < seconds["lock_timeout"] < seconds["statement_timeout"]
