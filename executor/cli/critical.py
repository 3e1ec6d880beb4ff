"""`smith critical`: lists the critical jobs (the agent's periodic tasks), and shows whether each is overdue."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from executor.cli.arguments import AsJson
from executor.cli.help_text import examples
from executor.cli.output import elapsed_text, show_json
from executor.cli.store import reading_store
from executor.cli.tables import show_rows
from executor.database import queries
from executor.database.tables import CriticalJob, utc_now

COLUMNS = {
    "name": "NAME",
    "interval": "EVERY",
    "state": "STATE",
    "started": "STARTED",
    "finished": "ENDED",
    "ok": "LAST OK",
    "failures": "FAILURES",
    "runs": "RUNS",
    "last_error": "LAST ERROR",
}
#: A critical job is overdue when its last execution was more than OVERDUE_AFTER_INTERVALS intervals plus
#: OVERDUE_TOLERANCE_S seconds ago. These values are also the defaults of `Scheduler.overdue_critical_jobs`.
OVERDUE_AFTER_INTERVALS = 3.0
OVERDUE_TOLERANCE_S = 30.0


@examples(
    "smith critical list",
    "smith critical list --json",
)
def list_critical(as_json: AsJson = False) -> None:
    """List the critical jobs.

    The list shows the last execution, the failures since the last success, and whether the critical job is overdue.
    """
    with reading_store() as store:
        jobs = queries.critical_jobs(store.session)
    now = utc_now()
    if as_json:
        show_json([json_fields(job, now) for job in jobs])
        return
    rows = [json_fields(job, now) | _table_fields(job, now) for job in jobs]
    show_rows(rows, COLUMNS, if_empty="no agent has run yet")


def json_fields(job: CriticalJob, now: datetime) -> dict[str, Any]:
    """Return a critical job as a dictionary with the keys of `--json`."""
    return {
        "name": job.name,
        "interval_s": job.interval_s,
        "due_at": job.due_at,
        "due": job.due_at is None or job.due_at <= now,
        "overdue": is_overdue(job, now),
        "last_started_at": job.last_started_at,
        "last_finished_at": job.last_finished_at,
        "last_ok_at": job.last_ok_at,
        "last_error": job.last_error,
        "failures": job.failures,
        "runs": job.runs,
    }


def is_overdue(job: CriticalJob, now: datetime) -> bool:
    """Return whether the last start or end of the critical job was longer ago than the limit (OVERDUE_AFTER_INTERVALS).

    A critical job that never started is measured from the time when it became due.
    """
    last_times = [time for time in (job.last_started_at, job.last_finished_at) if time is not None]
    last_time = max(last_times, default=job.due_at)
    max_age = timedelta(seconds=job.interval_s * OVERDUE_AFTER_INTERVALS + OVERDUE_TOLERANCE_S)
    return last_time is not None and now - last_time > max_age


def _table_fields(job: CriticalJob, now: datetime) -> dict[str, Any]:
    """Return the columns of the table that are not fields of `--json`."""
    state = "failing" if job.failures else "ok"
    if is_overdue(job, now):
        state = "overdue"
    return {
        "interval": f"{job.interval_s:g}s",
        "state": state,
        "started": _ago_text(job.last_started_at, now),
        "finished": _ago_text(job.last_finished_at, now),
        "ok": _ago_text(job.last_ok_at, now),
    }


def _ago_text(moment: datetime | None, now: datetime) -> str:
    return f"{elapsed_text(moment, now)} ago" if moment else "never"
