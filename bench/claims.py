"""Measures the duration of a claim with few and with many rows in the table of jobs, on SQLite and PostgreSQL.

All SQLite databases exist at the same time and are measured in turns, so that the load of the machine affects all of
them. Then the PostgreSQL databases are measured in the same way.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sqlalchemy import Engine

from bench.measuring import median, percentile
from bench.part import Bench, Goal, Part, Table, ratio_text, reversed_in_odd_rounds
from executor.database import job_queue, schema
from executor.database.engine import open_engine, transaction
from executor.database.postgresql import without_timeouts
from executor.model import JobResult

Json = dict[str, Any]
#: The owner of the claimed jobs.
OWNER_ID = "bench"
#: Of this number of rows, one is a pending job. All other jobs have ended, and their results are reported.
ROWS_PER_PENDING_JOB = 20
#: The number of tenants (participants in FulcrumCore that use services) that have pending jobs.
TENANT_COUNT = 50
#: The number of jobs with the status processing during a claim.
PROCESSING_JOB_COUNT = 8
#: The number of claims before the measurement.
WARM_UP_REPEATS = 10
#: The goals. MAX_RATIO limits the median duration with the most rows, divided by the median duration with the fewest
#: rows. MAX_P99_MS limits the 99th percentile of the durations with the most rows.
MAX_RATIO, MAX_P99_MS = 1.5, 50.0
#: The options of the PostgreSQL server. `fsync` stays on, as in production.
SERVER_OPTIONS = ("max_connections=80", "max_wal_size=4GB")
#: The statement that adds all rows. The database computes them, because a million INSERTs would take minutes. For some
#: of the placeholders in braces, SQLite and PostgreSQL need different SQL. `is_waiting` is true while a claimed job
#: waits for an answer of Proxmox or for the permission to clone. `core_created_at` is when FulcrumCore created the job.
FILL_STATEMENT = """
INSERT INTO jobs (
    fulcrum_id, service_id, tenant_id, action, service, priority, status, report_state, core_created_at, received_at,
    deadline_at, finished_at, reported_at, result, epoch, attempt, crashes, cancel_requested, report_attempts,
    is_waiting)
SELECT 'job-' || n, 'service-' || n, 'tenant-' || (n / {rows_per_pending_job} % {tenants}), 'start',
    {service}, 1,
    CASE WHEN n % {rows_per_pending_job} = 0 THEN 'pending' ELSE 'completed' END,
    CASE WHEN n % {rows_per_pending_job} = 0 THEN 'none' ELSE 'reported' END,
    {created_at}, {created_at}, {created_at},
    CASE WHEN n % {rows_per_pending_job} = 0 THEN NULL ELSE {created_at} END,
    CASE WHEN n % {rows_per_pending_job} = 0 THEN NULL ELSE {created_at} END,
    CASE WHEN n % {rows_per_pending_job} = 0 THEN NULL ELSE {result} END,
    0, 0, 0, {false}, 0, {false}
FROM {numbers}
"""
SERVICE = '{"name": "web-1", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian"}}'
RESULT = '{"vmid": 1001, "node": "pve1", "name": "web-1", "status": "running", "addresses": ["192.0.2.7"]}'


def _measure(bench: Bench) -> Json:
    """Return the durations for SQLite, and for PostgreSQL if it is installed."""
    row_counts = bench.sizes.claim_rows
    urls = {count: f"sqlite:///{bench.folder / f'claims-{count}.db'}" for count in row_counts}
    figures = {"SQLite": _measure_databases(urls, bench.sizes.claim_repeats)}
    with _postgresql_urls(row_counts) as postgresql_urls:
        if postgresql_urls:
            figures["PostgreSQL"] = _measure_databases(postgresql_urls, bench.sizes.claim_repeats)
    return figures


def _measure_databases(urls: dict[int, str], repeats: int) -> Json:
    """Return the durations of claims by number of rows. `urls` maps a number of rows to the URL of a new database."""
    engines = {count: _open_filled_database(url, count) for count, url in urls.items()}
    processing_leases: dict[int, deque[job_queue.Lease]] = {count: deque() for count in engines}
    durations_ms: dict[int, list[float]] = {count: [] for count in engines}
    for number in range(WARM_UP_REPEATS + repeats):
        for count in reversed_in_odd_rounds(list(engines), number):
            durations_ms[count].append(_measure_claim(engines[count], processing_leases[count]))
    for engine in engines.values():
        engine.dispose()
    measured_durations_ms = {count: durations[WARM_UP_REPEATS:] for count, durations in durations_ms.items()}
    return {
        str(count): {"p50_ms": median(durations), "p99_ms": percentile(durations, 0.99)}
        for count, durations in measured_durations_ms.items()
    }


def _measure_claim(engine: Engine, processing_leases: deque[job_queue.Lease]) -> float:
    """Claim a job in a transaction; return the duration in milliseconds.

    If more than PROCESSING_JOB_COUNT jobs now have the status processing, finish the job that was claimed first.
    """
    start_time_s = time.perf_counter()
    with transaction(engine) as session:
        # Agents pass `max_creates`, too: the maximum number of create jobs that are processing at the same time.
        job = job_queue.claim(session, OWNER_ID, lease_s=30, max_creates=8)
    duration_ms = 1000 * (time.perf_counter() - start_time_s)
    if job is None:
        raise RuntimeError("no pending job is left")
    processing_leases.append(job_queue.lease_of(job))
    if len(processing_leases) > PROCESSING_JOB_COUNT:
        with transaction(engine) as session:
            job_queue.finish(session, processing_leases.popleft(), JobResult(succeeded=True, vm={"vmid": 100}))
    return duration_ms


def _open_filled_database(url: str, row_count: int) -> Engine:
    """Open a new database and add `row_count` jobs. Their times of creation are one second apart."""
    engine = open_engine(url)
    schema.upgrade(engine)
    statement_values = {"rows_per_pending_job": ROWS_PER_PENDING_JOB, "tenants": TENANT_COUNT}
    if engine.dialect.name == "sqlite":
        numbers = "(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {}) SELECT n FROM c)"
        created_at = f"strftime('%Y-%m-%d %H:%M:%f000', 'now', (n - {row_count}) || ' seconds')"
        statement_values |= {
            "service": f"'{SERVICE}'",
            "result": f"'{RESULT}'",
            "false": "0",
            "numbers": numbers.format(row_count),
        }
        with engine.begin() as connection:
            connection.exec_driver_sql(FILL_STATEMENT.format(**statement_values, created_at=created_at))
        return engine
    statement_values |= {
        "service": f"CAST('{SERVICE}' AS json)",
        "result": f"CAST('{RESULT}' AS json)",
        "false": "false",
    }
    statement_values["created_at"] = f"now() - make_interval(secs => {row_count} - n)"
    statement_values["numbers"] = f"generate_series(1, {row_count}) AS n"
    with engine.begin() as connection, without_timeouts(connection):
        connection.exec_driver_sql(FILL_STATEMENT.format(**statement_values).replace("%", "%%"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("SET statement_timeout = 0")
        # None: the connection waits for an answer of the server without a time limit.
        connection.connection.driver_connection.response_timeout_s = None  # type: ignore[union-attr]
        connection.exec_driver_sql("VACUUM ANALYZE")  # in production, autovacuum does this
    engine.dispose()  # closes the connection of the VACUUM, whose time limits are off
    return engine


@contextmanager
def _postgresql_urls(row_counts: tuple[int, ...]) -> Iterator[dict[int, str]]:
    """Yield a dict from each number of rows to the URL of a new database. Without PostgreSQL, yield an empty dict."""
    from support import databases  # noqa: PLC0415  in tests/support; bench/baseline.py adds tests/ to sys.path

    binaries = databases.postgres_binaries()
    with ExitStack() as stack:
        if binaries is None:
            yield {}
            return
        cluster = stack.enter_context(databases.empty_cluster(binaries, SERVER_OPTIONS))
        cluster.execute(*(f"CREATE DATABASE rows_{count}" for count in row_counts))
        yield {count: cluster.url(f"rows_{count}") for count in row_counts}


def _tables(figures: Json) -> list[Table]:
    rows = []
    for database, figures_by_count in figures.items():
        fewest_rows_p50_ms = next(iter(figures_by_count.values()))["p50_ms"]
        for count, durations in figures_by_count.items():
            pending = f"{int(count) // ROWS_PER_PENDING_JOB:,}"
            cells = (
                f"{durations['p50_ms']:.1f}",
                ratio_text(durations["p50_ms"], fewest_rows_p50_ms),
                f"{durations['p99_ms']:.1f}",
            )
            rows.append((database, f"{int(count):,}", pending, *cells))
    headings = ("database", "rows", "pending jobs", "median ms", "ratio to median at fewest rows", "p99 ms")
    title = f"A claim, with pending jobs of {TENANT_COUNT} tenants and {PROCESSING_JOB_COUNT} processing jobs"
    return [Table(title=title, headings=headings, rows=rows)]


def _goals(figures: Json) -> list[Goal]:
    goals = []
    for database, figures_by_count in figures.items():
        fewest_rows, most_rows = min(figures_by_count, key=int), max(figures_by_count, key=int)
        ratio_to_fewest = figures_by_count[most_rows]["p50_ms"] / figures_by_count[fewest_rows]["p50_ms"]
        text = (
            f"median of a claim at {int(most_rows):,} rows, ratio to median at {int(fewest_rows):,} rows ({database})"
        )
        goals.append(Goal(figure_name=text, limit=MAX_RATIO, measured=ratio_to_fewest))
        text = f"99th percentile of a claim at {int(most_rows):,} rows ({database})"
        goals.append(
            Goal(figure_name=text, limit=MAX_P99_MS, measured=figures_by_count[most_rows]["p99_ms"], unit="ms")
        )
    return goals


#: A part is one benchmark of the bench. `bench/__main__.py` runs this one.
PART = Part(help="a claim with few and with many rows", measure=_measure, tables=_tables, goals=_goals)
