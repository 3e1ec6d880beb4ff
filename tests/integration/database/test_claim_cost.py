"""With many rows and many pending jobs, a claim reads hardly more than with few.

The work of a claim is counted and not timed: on SQLite in steps of its virtual machine, on PostgreSQL in pages.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, insert, update
from support.databases import LONG_AGO, new_job, submit
from support.job_steps import claimed

from executor.database.engine import transaction
from executor.database.tables.jobs import Job
from executor.model import JobStatus, ReportState

#: The maximum ratio of the cost of a claim with MANY more jobs to its cost with FEW jobs.
MAX_RATIO = 1.5
#: SQLite calls the handler that counts its steps once for this number of steps.
STEPS_PER_CALL = 10
FEW, MANY = 300, 6_000


def add_jobs(engine: Engine, count: int, *, tenants: int, pending_of_ten: int) -> None:
    """Insert jobs of several tenants. `pending_of_ten` of each ten jobs are pending, the others have ended."""
    rows = []
    for number in range(count):
        values = vars(new_job(service_id=None, tenant_id=f"tenant-{number % tenants}", action="start", age=number))
        columns = {name: value for name, value in values.items() if not name.startswith("is_")}
        is_pending = number // tenants % 10 < pending_of_ten
        status = JobStatus.PENDING if is_pending else JobStatus.COMPLETED
        state = ReportState.NONE if is_pending else ReportState.REPORTED
        ended_at = None if is_pending else LONG_AGO
        rows.append({**columns, "received_at": LONG_AGO, "status": status, "report_state": state})
        rows[-1] |= {"finished_at": ended_at, "result": None if is_pending else {"vmid": number}}
    with transaction(engine) as session:
        session.execute(insert(Job), rows)


def cost_of_a_claim(engine: Engine) -> int:
    """Claim a job and return the cost: steps on SQLite, pages on PostgreSQL."""
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE jobs")
        return _count_pages_of_a_claim(engine)
    calls = 0

    def count_call() -> None:
        nonlocal calls
        calls += 1

    with engine.connect() as connection:
        connection.connection.driver_connection.set_progress_handler(count_call, STEPS_PER_CALL)  # type: ignore[union-attr]
    claimed(engine)
    return calls


def _count_pages_of_a_claim(engine: Engine) -> int:
    statements: list[tuple[str, Any]] = []

    def record_update(_connection: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
        if "UPDATE jobs" in statement:
            statements.append((statement, values))

    event.listen(engine, "before_cursor_execute", record_update)
    claimed(engine)
    event.remove(engine, "before_cursor_execute", record_update)
    with engine.connect() as connection:
        return _count_pages(connection, *statements[0])


def _count_pages(connection: Connection, statement: str, values: Any) -> int:
    explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", values).scalar_one()
    plan = (json.loads(explained) if isinstance(explained, str) else explained)[0]["Plan"]
    connection.rollback()
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


@pytest.mark.parametrize(
    ("tenants", "pending_of_ten"), [(1, 10), (4, 10), (4, 1)], ids=["one tenant", "tenants", "most jobs have ended"]
)
def test_a_claim_costs_hardly_more_with_many_jobs_than_with_few(
    engine: Engine, tenants: int, pending_of_ten: int
) -> None:
    add_jobs(engine, FEW, tenants=tenants, pending_of_ten=pending_of_ten)
    claimed(engine)
    cost_with_few_jobs = cost_of_a_claim(engine)
    add_jobs(engine, MANY, tenants=tenants, pending_of_ten=pending_of_ten)

    cost_with_many_jobs = cost_of_a_claim(engine)

    assert cost_with_few_jobs > 0
    assert cost_with_many_jobs <= MAX_RATIO * cost_with_few_jobs


def test_a_claim_skips_the_backlog_of_a_tenant_whose_jobs_are_processing(engine: Engine) -> None:
    """The jobs of the busy tenant are the oldest ones, so a search by age would read all of them first."""
    add_jobs(engine, FEW, tenants=1, pending_of_ten=10)
    claimed(engine)
    late = [submit(engine, age=MANY + number, tenant_id="late") for number in range(2)]
    cost_with_few_jobs = cost_of_a_claim(engine)
    add_jobs(engine, MANY, tenants=1, pending_of_ten=10)
    with transaction(engine) as session:  # so that the late tenant has no processing job, as before
        columns = {"status": JobStatus.PENDING, "owner": None, "lease_until": None}
        session.execute(update(Job).where(Job.id.in_(late)).values(**columns))

    cost_with_many_jobs = cost_of_a_claim(engine)

    assert cost_with_many_jobs <= MAX_RATIO * cost_with_few_jobs
