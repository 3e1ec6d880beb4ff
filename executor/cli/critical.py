"""`smith critical`: lists the critical jobs (the agent's periodic tasks), and shows whether each is overdue."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from executor.cli.arguments import AsJson
from executor.cli.help_text import examples
from executor.cli.output import elapsed, show_json
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
#: A critical job is overdue when its last execution was more than MAX_INTERVALS intervals plus TOLERANCE_S seconds ago.
#: `Scheduler.overdue` uses the same values.
MAX_INTERVALS = 3.0
TOLERANCE_S = 30.0


@examples(
    "smith critical list",
    "smith critical list --json",
)
def list_critical(as_json: AsJson = False) -> None:
    """List the critical jobs.

    Shown are the last run, the failures since the last success, and whether the critical job is overdue.
    """
    with reading_store() as store:
        found = queries.critical_jobs(store.session)
    now = utc_now()
    if as_json:
        show_json([_json_fields(job, now) for job in found])
        return
    rows = [_json_fields(job, now) | _table_row(job, now) for job in found]
    show_rows(rows, COLUMNS, if_empty="no agent has run yet")


def _json_fields(job: CriticalJob, now: datetime) -> dict[str, Any]:
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
    """Return whether the last start or end of the critical job is so long ago that no agent executes it any more."""
    last = max((moment for moment in (job.last_started_at, job.last_finished_at) if moment), default=job.due_at)
    return last is not None and now - last > timedelta(seconds=job.interval_s * MAX_INTERVALS + TOLERANCE_S)


def _table_row(job: CriticalJob, now: datetime) -> dict[str, Any]:
    """Return the columns of the table that are not fields of `--json`."""
    state = "overdue" if is_overdue(job, now) else "failing" if job.failures else "ok"
    return {
        "interval": f"{job.interval_s:g}s",
        "state": state,
        "started": _elapsed_text(job.last_started_at, now),
        "finished": _elapsed_text(job.last_finished_at, now),
        "ok": _elapsed_text(job.last_ok_at, now),
    }


def _elapsed_text(moment: datetime | None, now: datetime) -> str:
    return f"{elapsed(moment, now)} ago" if moment else "never"
