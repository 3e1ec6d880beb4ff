"""`smith top`: shows what the agents do at this moment. The shown text (the view) is updated until Ctrl-C.

"The agents" are all agent processes that use the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from executor.cli.arguments import AsJson
from executor.cli.help_text import examples
from executor.cli.output import show_json
from executor.cli.store import ReadOnlyTransaction, read_only_transaction
from executor.cli.tables import show_fields, show_heading, show_rows
from executor.cli.watch import repeat_view
from executor.database.times import utc_now
from executor.model import JobStatus
from executor.views.activity import read_activity
from executor.views.status_document import Status, read_status
from executor.views.text import elapsed_text

RUNNING_COLUMNS = {
    "id": "JOB",
    "action": "ACTION",
    "guest": "VM",
    "percent": "%",  # the progress of the Proxmox task for which the job waits
    "for": "RUNS FOR",
    "text": "STEP",
    "name": "NAME",
    "left": "DEADLINE IN",
    "attempt": "TRY",
}
WAITING_COLUMNS = {
    "id": "JOB",
    "action": "ACTION",
    "waits": "WAITED",
    "next": "NEXT TRY",
    "error": "LAST ERROR",
    "name": "NAME",
}
FAILED_COLUMNS = {"id": "JOB", "action": "ACTION", "ago": "AGO", "error": "ERROR", "name": "NAME"}


@examples(
    "smith top",
    "smith top --once    one view, for a pipe",
)
def show(
    once: Annotated[bool, typer.Option("--once", help="Show the view once, and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show running jobs with their steps, the queue, and the last failures.

    The agents store the steps every 5 s (a sixth of SMITH_LEASE_S, whose default is 30 s).
    """
    if not (once or as_json):
        repeat_view(lambda transaction: _show_view(_read_status(transaction), _read_activity(transaction)))
        return
    with read_only_transaction() as transaction:
        status, activity = _read_status(transaction), _read_activity(transaction)
    if as_json:
        # `status.document` is the JSON document of `smith status --json`.
        show_json(status.document | activity)
    else:
        _show_view(status, activity)


def _read_activity(transaction: ReadOnlyTransaction) -> dict[str, Any]:
    return read_activity(transaction.connection, transaction.settings, utc_now())


def _read_status(transaction: ReadOnlyTransaction) -> Status:
    return read_status(transaction.connection, transaction.settings.smith_lease_s)


def _show_view(status: Status, activity: dict[str, Any]) -> None:
    document, now = status.document, utc_now()
    # Each name is a setting: SMITH_MAX_JOBS, SMITH_MAX_MEMORY_MIB or SMITH_MAX_RUNTIME_S. An agent process that reaches
    # a limit ends, and a new process starts. 0 means no limit.
    restart_limits = [f"{name} {value:g}" for name, value in activity["limits"].items() if value]
    show_fields(
        {
            "agents": f"{document['agents_running']} running" if document["agents_running"] else "no agent is running",
            "paused": status.pause_text,
            "FulcrumCore": status.fulcrum_text,
            "Proxmox": status.proxmox_text,
            # An agent that is running and not draining has one slot for each job that it may run in parallel.
            "slots": f"{document['jobs'][JobStatus.PROCESSING]} of {document['slots']} in use",
            "queue": _count_text(document["jobs"][JobStatus.PENDING], activity["oldest_pending_at"], now),
            # A report is due until FulcrumCore has acknowledged the result of the ended job.
            "outbox": _count_text(document["reports_due"], activity["oldest_due_report_at"], now),
            "agent restart limits": ", ".join(restart_limits),
        }
    )
    show_heading("Running")
    running_rows = [
        row | {"percent": "" if row["percent"] is None else f"{row['percent']:.0f}"} for row in activity["running"]
    ]
    show_rows(running_rows, RUNNING_COLUMNS, if_empty="no job is running")
    _show_section("Waiting, the oldest first", activity["waiting"], WAITING_COLUMNS)
    _show_section("Last failures (`smith jobs show JOB` has the details)", activity["failed"], FAILED_COLUMNS)


def _show_section(title: str, rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> None:
    if rows:
        show_heading(title)
        show_rows(rows, columns, if_empty="")


def _count_text(count: int, oldest_at: datetime | None, now: datetime) -> str:
    return f"{count}, the oldest has waited for {elapsed_text(oldest_at, now)}" if oldest_at else str(count)
