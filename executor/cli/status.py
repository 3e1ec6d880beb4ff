"""`smith status`: shows whether the agents, FulcrumCore and Proxmox work, and what waits for an operator.

`--json` prints the dictionary `Status.document`. Its key `nodes` has one row for each agent process, not for each
Proxmox node. "The agents" are all agent processes that use the database.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from executor.cli.arguments import AsJson
from executor.cli.help_text import examples
from executor.cli.output import show_json, show_text
from executor.cli.store import read_only_transaction
from executor.cli.tables import show_fields, show_heading, show_rows
from executor.database.times import utc_now
from executor.views.status_document import Status, read_status
from executor.views.text import elapsed_text

#: The columns of the jobs whose report (the message with the job's result) FulcrumCore has not accepted. `attempts` is
#: the number of attempts to send the report.
POSTPONED_REPORT_COLUMNS = {"id": "JOB", "action": "ACTION", "attempts": "ATTEMPTS", "reason": "CAUSE"}
#: The columns of the jobs that an Agent Smith with another database has claimed with this agent's token. `since` is
#: when this agent noticed the claim.
CLAIMED_ELSEWHERE_COLUMNS = {"id": "JOB", "action": "ACTION", "fulcrum_id": "FULCRUM ID", "since": "SINCE"}
FAILING_CRITICAL_JOB_COLUMNS = {
    "name": "NAME",
    "failures": "FAILURES",  # since the last success
    "last_ok": "LAST OK",
    "last_error": "LAST ERROR",
}
#: The columns of the table of agent processes: maps each key of a row to the heading of its column.
AGENT_COLUMNS = {
    "id": "AGENT",
    "state": "STATE",
    "host": "HOST",
    "pid": "PID",
    "concurrency": "SLOTS",  # the maximum number of jobs that the process runs in parallel
    "seen": "SEEN",  # when the process was last known to be running
    "started": "STARTED",
    "version": "VERSION",
    "stop_reason": "STOP REASON",
}


@examples(
    "smith status",
    "smith status --watch    again every two seconds, until Ctrl-C",
    "smith status --json",
)
def show(
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show the status again every two seconds, until Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show whether agents, FulcrumCore and Proxmox work; count jobs and mappings."""
    if watch:
        if as_json:
            raise typer.BadParameter("--watch cannot be combined with --json")
        from executor.cli.watch import repeat_view  # noqa: PLC0415 (only --watch needs it)

        # From the lease duration `smith_lease_s`, `read_status` concludes which agent processes are running.
        repeat_view(
            lambda transaction: _show_status(
                read_status(transaction.connection, transaction.settings.smith_lease_s), utc_now()
            )
        )
        return
    with read_only_transaction() as transaction:
        status = read_status(transaction.connection, transaction.settings.smith_lease_s)
    if as_json:
        show_json(status.document)
    else:
        _show_status(status, utc_now())


def _show_status(status: Status, now: datetime) -> None:
    document = status.document
    show_fields(
        {
            "agents": _agents_text(document),
            # Who paused the claiming of jobs, when and why. Empty, and not shown, if jobs are claimed.
            "paused": status.pause_text,
            "FulcrumCore": status.fulcrum_text,
            "Proxmox": status.proxmox_text,
            "jobs": _counts_text(document["jobs"]),
            # The number of ended jobs whose result was not sent yet, or was not accepted by FulcrumCore.
            "reports to send": document["reports_due"],
            # The number of mappings in each state.
            "mappings": _counts_text(document["mappings"]),
            "overdue critical jobs": ", ".join(document["critical_overdue"]) or "none",
        }
    )
    if failing_critical_jobs := document["critical_failing"]:
        show_heading("Critical jobs that fail (`smith critical list` shows all)")
        rows = [row | {"last_ok": ago_text(row["last_ok_at"], now)} for row in failing_critical_jobs]
        show_rows(rows, FAILING_CRITICAL_JOB_COLUMNS, if_empty="")
    if jobs_with_postponed_report := document["reports_postponed"]:
        show_heading(
            "Results that FulcrumCore has not accepted (the agent will send them again; `smith jobs retry JOB` lets "
            "the agent send the result of a job now)"
        )
        show_rows(jobs_with_postponed_report, POSTPONED_REPORT_COLUMNS, if_empty="")
    if jobs_claimed_elsewhere := document["claimed_elsewhere"]:
        show_heading(
            "Jobs that another installation with this agent's token has claimed (an installation is an Agent Smith "
            "with its own database. Stop the other one. Then `smith jobs retry JOB` lets this agent run the job)"
        )
        show_rows(jobs_claimed_elsewhere, CLAIMED_ELSEWHERE_COLUMNS, if_empty="")
    show_heading("Agents")
    rows = [
        row | {"started": ago_text(row["started_at"], now), "seen": ago_text(row["seen_at"], now)}
        for row in document["nodes"]
    ]
    show_rows(rows, AGENT_COLUMNS, if_empty="no agent has run yet")
    if not document["agents_running"]:
        show_text("no agent is running: `smith run` starts one")


def _agents_text(document: dict[str, Any]) -> str:
    count = document["agents_running"]
    return f"{count} running" if count else "no agent is running"


def _counts_text(counts: dict[str, int]) -> str:
    """Return the counts as text, for example `2 pending, 1 processing`."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def ago_text(moment: datetime | None, now: datetime) -> str:
    """Return how long ago a moment was, for example `3m ago`, or `never`."""
    return f"{elapsed_text(moment, now)} ago" if moment else "never"
