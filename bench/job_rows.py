"""Measures the durations of the job queue's operations for several numbers of rows in the table of jobs."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert

from bench.measuring import ROOT, median, percentile
from executor.database import job_queue, outbox, queries, schema
from executor.database.engine import open_engine, transaction
from executor.database.job_queue import NewJob
from executor.database.tables import Job, utc_now
from executor.model import JobResult, JobStatus, ReportState

OWNER = "bench"
#: One of this number of jobs is pending, and the others have ended.
ROWS_PER_PENDING = 20
#: How many rows one INSERT adds.
BATCH = 5_000
#: How many due reports one call of `due_reports` may return.
REPORTS = 50
#: The measured operations. `list rare` lists the processing jobs, which are very few.
OPERATIONS = ("submit", "claim", "finish", "report", "renew", "list newest", "list rare")


def measure(url: str, sizes: list[int], repeats: int) -> dict[int, dict[str, dict[str, float]]]:
    """Return the 50th and 99th percentile of each operation's duration, for each number of rows in `sizes`.

    Each operation is done `repeats` times, each time in a transaction of its own. Durations are in milliseconds.
    """
    engine = open_engine(url)
    schema.upgrade(engine)
    measured, rows = {}, 0
    for size in sizes:
        _fill(engine, rows, size)
        rows = size
        _cycle(engine, 5)  # fills the page cache and the statement cache before the measurement
        measured[size] = {operation: _percentiles(times) for operation, times in _cycle(engine, repeats).items()}
    engine.dispose()
    return measured


def _fill(engine: Engine, existing: int, wanted: int) -> None:
    now = utc_now()
    for start in range(existing, wanted, BATCH):
        rows = [
            _row(number, now - timedelta(seconds=wanted - number))
            for number in range(start, min(start + BATCH, wanted))
        ]
        with transaction(engine) as session:
            session.execute(insert(Job), rows)


def _row(number: int, at: Any) -> dict[str, Any]:
    is_pending = number % ROWS_PER_PENDING == 0
    times = {"core_created_at": at, "deadline_at": at + timedelta(minutes=5), "received_at": at}
    ended = {} if is_pending else {"finished_at": at, "reported_at": at}
    return {
        "fulcrum_id": str(uuid.uuid4()),
        "service_id": str(uuid.uuid4()),
        "group_id": f"group-{number % 97}",
        "action": "start",
        "service": {"name": f"service-{number}", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10}},
        "priority": 1,
        "status": JobStatus.PENDING if is_pending else JobStatus.COMPLETED,
        "report_state": ReportState.NONE if is_pending else ReportState.REPORTED,
        "finished_at": None,
        "reported_at": None,
        **times,
        **ended,
    }


def _cycle(engine: Engine, repeats: int) -> dict[str, list[float]]:
    """Do every operation `repeats` times, each time in its own transaction; return all durations in milliseconds."""
    times: dict[str, list[float]] = {operation: [] for operation in OPERATIONS}
    for _ in range(repeats):
        _timed(times["submit"], engine, _submit)
        job = _timed(times["claim"], engine, lambda session: job_queue.claim(session, OWNER, lease_s=30, max_creates=8))
        lease = job_queue.lease_of(job)
        _timed(times["renew"], engine, lambda session: job_queue.renew(session, OWNER, lease_s=30))
        _timed(times["list newest"], engine, queries.list_jobs)
        _timed(times["list rare"], engine, lambda session: queries.list_jobs(session, statuses=[JobStatus.PROCESSING]))
        result = JobResult(succeeded=True, vm={"vmid": 100, "status": "running"})
        _timed(
            times["finish"],
            engine,
            lambda session, lease=lease, result=result: job_queue.finish(session, lease, result),
        )
        _timed(times["report"], engine, _report)
    return times


def _timed(times: list[float], engine: Engine, operation: Callable[..., Any]) -> Any:
    started = time.perf_counter()
    with transaction(engine) as session:
        answer = operation(session)
    times.append(1000 * (time.perf_counter() - started))
    return answer


def _submit(session: Any) -> None:
    now = utc_now()
    new = NewJob(
        fulcrum_id=str(uuid.uuid4()),
        service_id=str(uuid.uuid4()),
        group_id=None,
        action="create",
        params=None,
        service={"name": "new"},
        defect=None,
        priority=1,
        core_created_at=now,
        deadline_at=now + timedelta(minutes=5),
    )
    job_queue.submit(session, new)


def _report(session: Any) -> None:
    for job in outbox.due_reports(session, REPORTS):
        outbox.note_reported(session, job.id, ReportState.REPORTED)


def _percentiles(times: list[float]) -> dict[str, float]:
    return {"p50_ms": median(times), "p99_ms": percentile(times, 0.99)}


@contextmanager
def postgres_url() -> Iterator[str | None]:
    """Yield the URL of a temporary PostgreSQL database, or None when PostgreSQL is not installed."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    import databases  # noqa: PLC0415  a helper module of the tests, which belongs to no package

    if (binaries := databases.postgres_binaries()) is None:
        yield None
        return
    with databases.postgres_cluster(Path(binaries)) as cluster, cluster.fresh_database() as url:
        yield url
