"""Which job a claim takes, on SQLite and on PostgreSQL.

`age` is the job's creation time, in minutes after a fixed time. So a job with a smaller `age` was created earlier.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, text, update
from support.databases import new_job, row, submit
from support.job_steps import LEASE_S, claim, claimed, end_backoff, finish, requeue

from executor.database import job_queue, manual_runs, other_leases, outbox, periods, queries, reaping
from executor.database.engine import read_only_session, transaction
from executor.database.statements import MAX_BACKOFF_S
from executor.database.tables.jobs import Job
from executor.database.times import db_now
from executor.model import JobStatus


def test_the_highest_priority_is_claimed_first_then_the_oldest(engine: Engine) -> None:
    late, early, urgent, tie = (
        submit(engine, priority=1, age=2),
        submit(engine, priority=1, age=1),
        submit(engine, priority=5, age=9),
        submit(engine, priority=1, age=2),
    )
    assert [claimed(engine).id for _ in range(4)] == [urgent, early, late, tie]
    assert claim(engine) is None


def test_a_burst_of_one_tenant_does_not_delay_the_others(engine: Engine) -> None:
    burst = [submit(engine, age=number, tenant_id="burst") for number in range(6)]
    late = [submit(engine, age=50 + number, tenant_id="late") for number in range(2)]
    without_tenant = submit(engine, age=70)
    claimed_ids = [claimed(engine).id for _ in range(9)]
    assert claimed_ids == [burst[0], late[0], without_tenant, burst[1], late[1], *burst[2:]]


def test_tenants_with_equally_many_running_jobs_take_turns_by_age(engine: Engine) -> None:
    first = [submit(engine, age=2 * number, tenant_id="a") for number in range(3)]
    second = [submit(engine, age=2 * number + 1, tenant_id="b") for number in range(3)]
    assert [claimed(engine).id for _ in range(6)] == [first[0], second[0], first[1], second[1], first[2], second[2]]


def test_a_higher_priority_takes_precedence_over_fairness_between_tenants(engine: Engine) -> None:
    urgent = [submit(engine, age=9, priority=5, tenant_id="a") for _ in range(2)]
    low_priority = submit(engine, age=1, priority=1, tenant_id="b")
    assert [claimed(engine).id for _ in range(3)] == [*urgent, low_priority]


def test_with_tenants_the_limit_of_creates_holds_and_other_actions_are_claimed(engine: Engine) -> None:
    submit(engine, age=1, tenant_id="a")
    submit(engine, age=2, tenant_id="b")
    stop = submit(engine, age=3, action="stop", tenant_id="a")
    with transaction(engine) as session:
        jobs = [job_queue.claim(session, "me", lease_s=LEASE_S, max_creates=1) for _ in range(3)]
    assert [job.id if job else None for job in jobs][1:] == [stop, None]


def test_a_claim_stores_owner_and_attempt_and_starts_a_lease(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine, "alice")
    assert (job.status, job.owner, job.epoch, job.attempt) == ("processing", "alice", 1, 1)
    with read_only_session(engine) as session:
        in_range = (Job.lease_until > db_now(LEASE_S - 10), Job.lease_until <= db_now(LEASE_S))
        assert session.execute(select(*in_range)).one() == (True, True)


def test_one_job_of_a_service_is_processing_at_a_time(engine: Engine) -> None:
    service = str(uuid.uuid4())
    first, second = submit(engine, service_id=service, age=1), submit(engine, service_id=service, age=2)
    job_of_other_service = submit(engine, age=3)
    job = claimed(engine)
    assert (job.id, claimed(engine).id, claim(engine)) == (first, job_of_other_service, None)
    finish(engine, job)
    assert claimed(engine).id == second


def test_jobs_without_a_service_do_not_wait_for_each_other(engine: Engine) -> None:
    for _ in range(2):
        submit(engine, service_id=None)
    assert claimed(engine).id != claimed(engine).id


def test_the_database_refuses_a_second_processing_job_of_a_service(engine: Engine) -> None:
    service = str(uuid.uuid4())
    submit(engine, service_id=service)
    second = submit(engine, service_id=service)
    claimed(engine)
    with pytest.raises(Exception, match=r"(?i)unique"), transaction(engine) as session:
        session.execute(update(Job).where(Job.id == second).values(status=JobStatus.PROCESSING))


def test_creates_run_up_to_their_limit_and_other_actions_run_beyond_it(engine: Engine) -> None:
    creates = [submit(engine, action="create", age=age) for age in range(3)]
    stop = submit(engine, action="stop", age=9)
    running = [claimed(engine, max_creates=2) for _ in range(3)]
    assert [job.id for job in running] == [*creates[:2], stop]
    assert claim(engine, max_creates=2) is None
    finish(engine, running[0])
    assert claimed(engine, max_creates=2).id == creates[2]


def test_a_create_above_the_limit_does_not_delay_a_job_of_lower_priority(engine: Engine) -> None:
    submit(engine, action="create", priority=9)
    stop = submit(engine, action="stop", priority=1)
    assert claimed(engine, max_creates=0).id == stop


def test_no_create_is_claimed_when_the_limit_is_zero(engine: Engine) -> None:
    submit(engine, action="create")
    assert claim(engine, max_creates=0) is None


def test_simultaneous_claims_respect_the_limit_of_creates(engine: Engine) -> None:
    for _ in range(16):
        submit(engine, action="create")
    start = threading.Barrier(8, timeout=60)

    def claim_twice(owner: int) -> int:
        start.wait()
        return sum(claim(engine, f"node-{owner}", max_creates=3) is not None for _ in range(2))

    with ThreadPoolExecutor(8) as pool:
        claim_counts = list(pool.map(claim_twice, range(8)))
    assert sum(claim_counts) == 3


def test_a_job_is_not_claimed_during_its_backoff(engine: Engine) -> None:
    waiting = submit(engine, age=1)
    requeue(engine, claimed(engine), backoff_s=3600)
    assert claim(engine) is None
    end_backoff(engine, waiting)
    second_attempt = claimed(engine)
    assert (second_attempt.id, second_attempt.attempt, second_attempt.epoch, second_attempt.available_at) == (
        waiting,
        2,
        2,
        None,
    )


@pytest.mark.parametrize("set_back_s", [4000, 86_400])
def test_after_the_clock_was_set_back_a_job_in_backoff_is_claimed(engine: Engine, set_back_s: float) -> None:
    """Then `available_at` is later than any backoff can end, so it is ignored."""
    job_id = submit(engine)
    requeue(engine, claimed(engine), backoff_s=10)
    with transaction(engine) as session:
        session.execute(update(Job).values(available_at=db_now(10 + set_back_s)))
    assert claimed(engine).id == job_id


def test_a_backoff_above_the_maximum_is_shortened_to_it(engine: Engine) -> None:
    submit(engine)
    requeue(engine, claimed(engine), backoff_s=86_400)
    assert claim(engine) is None
    with read_only_session(engine) as session:
        assert session.scalar(select(Job.available_at <= db_now(MAX_BACKOFF_S)))


def test_a_requeued_job_has_no_owner_and_keeps_the_reason(engine: Engine) -> None:
    submit(engine)
    requeue(engine, claimed(engine))
    job = row(engine, 1)
    assert (job.status, job.owner, job.lease_until, job.available_at) == ("pending", None, None, None)
    assert job.error_message == "later"


@pytest.mark.parametrize("backoff_s", [0.5, 1.0, 60.0])
def test_a_backoff_lasts_as_long_as_requested(engine: Engine, backoff_s: float) -> None:
    submit(engine)
    requeue(engine, claimed(engine), backoff_s=backoff_s)
    with read_only_session(engine) as session:
        in_range = (Job.available_at > db_now(backoff_s - 5), Job.available_at <= db_now(backoff_s))
        assert session.execute(select(*in_range)).one() == (True, True)


def test_eight_threads_claim_every_job_once_and_never_two_of_a_service(engine: Engine) -> None:
    services = [str(uuid.uuid4()) for _ in range(40)]
    with transaction(engine) as session:
        for number in range(160):
            job_queue.submit(session, new_job(service_id=services[number % 40], action="stop", age=number))
    lock, start = threading.Lock(), threading.Barrier(8, timeout=60)
    running: dict[str, int] = {}
    claimed_ids: list[int] = []
    overlaps: list[str] = []

    def claim_and_finish_jobs(owner: str) -> None:
        start.wait()
        while (job := claim(engine, owner)) is not None or _has_pending(engine):
            if job is None:  # every remaining service has a running job of another thread
                time.sleep(0.02)
                continue
            service = str(job.service_id)
            with lock:
                overlaps.extend([service] if service in running else [])
                running[service] = job.id
                claimed_ids.append(job.id)
            stored = row(engine, job.id)
            overlaps.extend([service] if stored.owner != owner else [])
            with lock:
                del running[service]
            finish(engine, job)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(claim_and_finish_jobs, f"node-{number}") for number in range(8)]:
            future.result()
    assert (len(claimed_ids), len(set(claimed_ids)), overlaps) == (160, 160, [])
    with read_only_session(engine) as session:
        assert queries.count_jobs(session)["completed"] == 160
        assert session.scalar(select(func.max(Job.attempt))) == 1


def _has_pending(engine: Engine) -> bool:
    with read_only_session(engine) as session:
        return queries.count_jobs(session)["pending"] > 0


def test_no_statement_of_a_jobs_processing_is_compiled_twice(engine: Engine) -> None:
    """Compiling a claim takes several times as long as running it, and idle agents claim often."""
    cache_uses: set[str] = set()

    def record_cache_use(
        _connection: Any, _cursor: Any, statement: str, _values: Any, context: Any, _many: bool
    ) -> None:
        if context.compiled is not None and "SAVEPOINT" not in statement:
            cache_uses.add(context.cache_hit.name)

    def process_a_job() -> None:
        submit(engine, tenant_id="a")
        job = claimed(engine, max_creates=3)
        with transaction(engine) as session:
            job_queue.renew_leases(session, "alice", lease_s=LEASE_S)
            reaping.reap(session, other_leases.leases_of_other_processes(session, "alice"))
            periods.try_start_period(session, "Poll", 1.0)
        requeue(engine, job, backoff_s=60)
        end_backoff(engine, job.id)
        finish(engine, claimed(engine, max_creates=3))
        with transaction(engine) as session:
            outbox.postpone_report(session, job.id, backoff_s=60, note="later")
            assert outbox.jobs_with_due_report(session, 10) == []

    process_a_job()
    event.listen(engine, "before_cursor_execute", record_cache_use)
    process_a_job()

    assert cache_uses == {"CACHE_HIT"}


def _claim_and_record_statements(engine: Engine, claims: int) -> list[tuple[str, Any]]:
    """Claim jobs, and return the text and the values of each statement that changed jobs."""
    executed: list[tuple[str, Any]] = []

    def record_update(_connection: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
        if "UPDATE jobs" in statement:
            executed.append((statement, values))

    event.listen(engine, "before_cursor_execute", record_update)
    for _ in range(claims):
        claimed(engine, max_creates=100)
    event.remove(engine, "before_cursor_execute", record_update)
    return executed


def test_the_claim_is_one_statement_whose_text_does_not_depend_on_the_tenants(engine: Engine) -> None:
    for number in range(24):
        submit(engine, age=number, tenant_id=f"tenant-{number % 8}" if number % 3 else None)
    executed = _claim_and_record_statements(engine, claims=20)
    assert len(executed) == 20
    assert len({statement for statement, _values in executed}) == 1


def test_a_claim_reads_pending_and_processing_jobs_from_their_indexes(engine: Engine) -> None:
    for number in range(4):
        submit(engine, age=number, tenant_id=f"tenant-{number % 2}")
    ((statement, values),) = _claim_and_record_statements(engine, claims=1)
    with transaction(engine) as session:
        connection = session.connection()
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # the table is small
            connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
            explain = "EXPLAIN"
        else:
            explain = "EXPLAIN QUERY PLAN"
        steps = [str(plan_row[-1]) for plan_row in connection.exec_driver_sql(f"{explain} {statement}", values)]
    for index in ("ix_jobs_to_claim", "ix_jobs_to_claim_of_tenant", "ix_jobs_one_processing_per_service"):
        assert any(re.search(rf"\b{index}\b", step) for step in steps), steps
    assert not any("SCAN jobs" in step and "INDEX" not in step for step in steps), steps
    assert not any("Seq Scan" in step for step in steps), steps


@pytest.mark.parametrize("running_count", [0, 1, 2])
def test_a_job_without_a_tenant_counts_as_the_job_of_an_idle_tenant(engine: Engine, running_count: int) -> None:
    for _ in range(running_count):
        submit(engine, tenant_id="busy")
        claimed(engine)
    with_tenant, without_tenant = submit(engine, age=1, tenant_id="busy"), submit(engine, age=2)
    expected = [without_tenant, with_tenant] if running_count else [with_tenant, without_tenant]
    assert [claimed(engine).id for _ in range(2)] == expected


def test_a_tie_is_decided_by_the_id_also_after_the_first_job_was_requeued(engine: Engine) -> None:
    first, second = (submit(engine, tenant_id="a") for _ in range(2))
    requeue(engine, claimed(engine))  # PostgreSQL now reads this row last
    assert [claimed(engine).id for _ in range(2)] == [first, second]


def test_a_claim_on_postgresql_skips_a_job_that_another_agent_is_claiming(postgres_engine: Engine) -> None:
    first, second = submit(postgres_engine, age=1), submit(postgres_engine, age=2)
    with transaction(postgres_engine) as other_session:
        job = job_queue.claim(other_session, "alice", lease_s=LEASE_S)
        assert job is not None
        assert job.id == first
        with transaction(postgres_engine) as session:
            session.execute(text("SET LOCAL lock_timeout = '5s'"))
            second_job = job_queue.claim(session, "bob", lease_s=LEASE_S)
            assert second_job is not None
            assert second_job.id == second


@pytest.mark.parametrize(("max_creates", "exclusive_lock_count"), [(None, 0), (3, 1)])
def test_a_claim_on_postgresql_takes_the_create_limit_lock_exclusively_and_the_manual_runs_lock_shared(
    postgres_engine: Engine, max_creates: int | None, exclusive_lock_count: int
) -> None:
    submit(postgres_engine, action="create")
    with transaction(postgres_engine) as session:
        job_queue.claim(session, "alice", lease_s=LEASE_S, max_creates=max_creates)
        held_locks = session.execute(text("SELECT objid, mode FROM pg_locks WHERE locktype = 'advisory'")).all()
    exclusive = [(job_queue.CREATE_LIMIT_LOCK_KEY, "ExclusiveLock")] * exclusive_lock_count
    assert sorted(map(tuple, held_locks)) == [(manual_runs.MANUAL_RUN_LOCK_KEY, "ShareLock"), *exclusive]
