"""`smith critical`: lists the critical jobs (the agent's periodic tasks), and shows whether each is overdue."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from executor.cli.arguments import AsJson
from executor.cli.help_text import examples
from executor.cli.output import show_json
from executor.cli.store import read_only_transaction
from executor.cli.tables import show_rows
from executor.database import agent_queries
from executor.database.times import utc_now
from executor.views.critical_jobs import is_overdue, json_fields
from executor.views.text import elapsed_text

if TYPE_CHECKING:  # A command that only reads does not import SQLAlchemy's ORM, which this class needs.
    from executor.database.tables.agents import CriticalJob

COLUMNS = {
    "name": "NAME",
    "interval": "EVERY",
    "state": "STATE",
    "started": "STARTED",
    "finished": "ENDED",
    "ok": "LAST OK",  # how long ago the last successful execution ended
    "failures": "FAILURES",
    "runs": "EXECUTIONS",
    "last_error": "LAST ERROR",
}


@examples(
    "smith critical list",
    "smith critical list --json",
)
def list_critical(as_json: AsJson = False) -> None:
    """List the critical jobs, which are the agent's periodic tasks.

    For each critical job, the list shows the last execution, the failures since the last success, and whether the next
    execution is overdue.
    """
    with read_only_transaction() as transaction:
        jobs = agent_queries.list_critical_jobs(transaction.connection)
    now = utc_now()
    if as_json:
        show_json([json_fields(job, now) for job in jobs])
        return
    rows = [json_fields(job, now) | _table_fields(job, now) for job in jobs]
    show_rows(rows, COLUMNS, if_empty="no agent has run yet")


def _table_fields(job: CriticalJob, now: datetime) -> dict[str, Any]:
    """Return the values that the table shows in another form than `--json`."""
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
