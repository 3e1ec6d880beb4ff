"""Measures how the durations of the job queue's operations depend on the number of rows in the table of jobs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert

from bench.measuring import median, percentile
from bench.part import Bench, Part, Table, ratio_text
from executor.database import job_queue, outbox, queries, schema
from executor.database.engine import open_engine, transaction
from executor.database.job_queue import NewJob
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.model import JobResult, JobStatus, ReportState

#: The owner of the claimed jobs.
OWNER_ID = "bench"
#: Of this number of rows, one is a pending job. All other jobs have ended.
ROWS_PER_PENDING_JOB = 20
#: Number of rows that one INSERT adds.
ROWS_PER_INSERT = 5_000
#: The maximum number of jobs that a call of `jobs_with_due_report` returns: ended jobs whose report is due.
MAX_REPORTS = 50
#: How many times each operation is done before the measurement, to fill the page cache and the statement cache.
WARM_UP_REPEATS = 5
#: The number of FulcrumCore's service groups to which the jobs belong.
GROUP_COUNT = 97
#: The measured operations. `list rare` lists the jobs in the status Processing, which very few jobs have. `list failed`
#: lists the failed jobs, of which there are none: without an index, the database would read every job.
OPERATIONS = ("submit", "claim", "finish", "report", "renew", "list newest", "list rare", "list failed")


def _measure(bench: Bench) -> dict[str, Any]:
    """Return the durations for SQLite, and for PostgreSQL if it is installed."""
    row_counts, repeats = list(bench.sizes.row_counts), bench.sizes.row_repeats
    figures = {"SQLite": _measure_database(f"sqlite:///{bench.folder / 'rows.db'}", row_counts, repeats)}
    with postgres_url_if_installed() as url:
        if url:
            figures["PostgreSQL"] = _measure_database(url, row_counts, repeats)
    return figures


def _measure_database(url: str, row_counts: list[int], repeats: int) -> dict[int, dict[str, dict[str, float]]]:
    """Return the 50th and 99th percentile of each operation's duration in milliseconds, for each number of rows.

    Each operation is done `repeats` times, each time in its own transaction. `row_counts` must be ascending.
    """
    engine = open_engine(url)
    schema.upgrade(engine)
    percentiles_by_row_count: dict[int, dict[str, dict[str, float]]] = {}
    count_before = 0
    for row_count in row_counts:
        _add_rows(engine, count_before, row_count)
        count_before = row_count
        _measure_all_operations(engine, WARM_UP_REPEATS)
        durations_ms = _measure_all_operations(engine, repeats)
        percentiles_by_row_count[row_count] = {
            operation: _percentiles(durations_ms[operation]) for operation in OPERATIONS
        }
    engine.dispose()
    return percentiles_by_row_count


def _add_rows(engine: Engine, count_before: int, count_after: int) -> None:
    """Add rows to the table of jobs until it has `count_after` rows. Their times of creation are one second apart."""
    now = utc_now()
    for start in range(count_before, count_after, ROWS_PER_INSERT):
        numbers = range(start, min(start + ROWS_PER_INSERT, count_after))
        rows = [_job_row(number, now - timedelta(seconds=count_after - number)) for number in numbers]
        with transaction(engine) as session:
            session.execute(insert(Job), rows)


def _job_row(number: int, created_at: datetime) -> dict[str, Any]:
    """Return the columns of a pending job, or of a job that has ended and is reported."""
    is_pending = number % ROWS_PER_PENDING_JOB == 0
    ended_at = None if is_pending else created_at
    return {
        "fulcrum_id": str(uuid.uuid4()),
        "service_id": str(uuid.uuid4()),
        "group_id": f"group-{number % GROUP_COUNT}",
        "action": "start",
        "service": {"name": f"service-{number}", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10}},
        "priority": 1,
        "status": JobStatus.PENDING if is_pending else JobStatus.COMPLETED,
        "report_state": ReportState.NONE if is_pending else ReportState.REPORTED,
        "core_created_at": created_at,  # when FulcrumCore created the job
        "received_at": created_at,
        "deadline_at": created_at + timedelta(minutes=5),
        "finished_at": ended_at,
        "reported_at": ended_at,
    }


def _measure_all_operations(engine: Engine, repeats: int) -> dict[str, list[float]]:
    """Do every operation `repeats` times, each time in its own transaction.

    Return a dict from each operation to its durations in milliseconds.
    """
    durations_ms: dict[str, list[float]] = {operation: [] for operation in OPERATIONS}
    for _ in range(repeats):
        _measure_operation(durations_ms["submit"], engine, _submit_job)
        # `max_creates` limits the number of create jobs that are processing.
        job = _measure_operation(
            durations_ms["claim"], engine, lambda session: job_queue.claim(session, OWNER_ID, lease_s=30, max_creates=8)
        )
        lease = job_queue.lease_of(job)
        _measure_operation(
            durations_ms["renew"], engine, lambda session: job_queue.renew_leases(session, OWNER_ID, lease_s=30)
        )
        _measure_operation(durations_ms["list newest"], engine, queries.list_jobs)
        _measure_operation(
            durations_ms["list rare"],
            engine,
            lambda session: queries.list_jobs(session, statuses=[JobStatus.PROCESSING]),
        )
        _measure_operation(
            durations_ms["list failed"],
            engine,
            lambda session: queries.list_jobs(session, statuses=[JobStatus.FAILED]),
        )
        result = JobResult(succeeded=True, vm={"vmid": 100, "status": "running"})
        _measure_operation(
            durations_ms["finish"],
            engine,
            lambda session, lease=lease, result=result: job_queue.finish(session, lease, result),
        )
        _measure_operation(durations_ms["report"], engine, _report_jobs)
    return durations_ms


def _measure_operation(durations_ms: list[float], engine: Engine, operation: Callable[..., Any]) -> Any:
    """Do an operation in a transaction, append its duration to the list, and return its result."""
    start_time_s = time.perf_counter()
    with transaction(engine) as session:
        result = operation(session)
    durations_ms.append(1000 * (time.perf_counter() - start_time_s))
    return result


def _submit_job(session: Any) -> None:
    now = utc_now()
    new_job = NewJob(
        fulcrum_id=str(uuid.uuid4()),
        service_id=str(uuid.uuid4()),
        group_id=None,  # the id of the service's group in FulcrumCore; None: the service is in no group
        action="create",
        params=None,
        service={"name": "new"},
        defect=None,  # None: the job can run
        priority=1,
        core_created_at=now,
        deadline_at=now + timedelta(minutes=5),
    )
    job_queue.submit(session, new_job)


def _report_jobs(session: Any) -> None:
    """Record that FulcrumCore acknowledged the results of all jobs that `jobs_with_due_report` returns."""
    for job in outbox.jobs_with_due_report(session, MAX_REPORTS):
        outbox.set_report_state(session, job.id, ReportState.REPORTED)


def _percentiles(durations_ms: list[float]) -> dict[str, float]:
    return {"p50_ms": median(durations_ms), "p99_ms": percentile(durations_ms, 0.99)}


@contextmanager
def postgres_url_if_installed() -> Iterator[str | None]:
    """Yield the URL of a temporary PostgreSQL database, or None if PostgreSQL is not installed."""
    from support import databases  # noqa: PLC0415  bench/baseline.py adds its folder, tests/, to sys.path

    binaries = databases.postgres_binaries()
    if binaries is None:
        yield None
        return
    with databases.postgres_cluster(Path(binaries)) as cluster, cluster.fresh_database() as url:
        yield url


def _tables(figures: dict[str, Any]) -> list[Table]:
    """Return the table."""
    rows = []
    for database, figures_by_row_count in figures.items():
        figures_of_fewest_rows = next(iter(figures_by_row_count.values()))
        for row_count, by_operation in figures_by_row_count.items():
            for operation, percentiles in by_operation.items():
                fewest_rows_p50_ms = figures_of_fewest_rows[operation]["p50_ms"]
                cells = (f"{percentiles['p50_ms']:.1f}", ratio_text(percentiles["p50_ms"], fewest_rows_p50_ms))
                rows.append((database, f"{int(row_count):,}", operation, *cells, f"{percentiles['p99_ms']:.1f}"))
    headings = ("database", "rows", "operation", "median ms", "ratio to fewest rows", "p99 ms")
    return [Table(title="Operations of the job queue", headings=headings, rows=rows)]


#: A part is one benchmark of the bench. `bench/__main__.py` runs this one.
PART = Part(help="the job queue's operations by number of rows", measure=_measure, tables=_tables)
