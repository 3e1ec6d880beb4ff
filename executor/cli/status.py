"""`smith status`: counts jobs, reports and VMs, and shows the agent processes and the overdue critical jobs.

The table `nodes` has one row for each agent process. These rows are not the nodes of Proxmox.
"""

from __future__ import annotations

import socket
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from executor.cli import critical
from executor.cli.arguments import AsJson
from executor.cli.help_text import examples
from executor.cli.output import elapsed_text, show_json
from executor.cli.store import reading_store
from executor.cli.tables import show_fields, show_heading, show_rows
from executor.database import mappings, nodes, queries
from executor.database.tables import Job, Node, utc_now

#: The maximum number of agent processes that are shown. Running and ended processes are shown, the last seen first.
MAX_SHOWN_AGENTS = 10
#: The maximum number of postponed reports that are shown. Those of the jobs that ended first are shown.
MAX_SHOWN_REPORTS = 10
REPORT_COLUMNS = {"id": "JOB", "action": "ACTION", "attempts": "ATTEMPTS", "reason": "CAUSE"}
#: The maximum number of jobs claimed by another executor that are shown. The oldest are shown.
MAX_SHOWN_CLAIMED_ELSEWHERE = 10
CLAIMED_ELSEWHERE_COLUMNS = {"id": "JOB", "action": "ACTION", "fulcrum_id": "FULCRUM", "since": "SINCE"}
#: An agent process has vanished if it has not updated its row in the table `nodes` for this many lease durations. A
#: running agent updates the row six times in each lease duration.
VANISHED_AFTER_LEASES = 2
#: The same for an agent process that does not exist on this host: it has omitted two updates.
SILENT_AFTER_LEASES = 1 / 3
#: The columns of the table of agent processes: the heading of each column, keyed by the key of its values in a row.
AGENT_COLUMNS = {
    "id": "AGENT",
    "host": "HOST",
    "pid": "PID",
    "version": "VERSION",
    "state": "STATE",
    "concurrency": "SLOTS",
    "started": "STARTED",
    "seen": "SEEN",
    "stop_reason": "STOPPED BY",
}


@examples(
    "smith status",
    "smith status --json",
)
def show(as_json: AsJson = False) -> None:
    """Count jobs, reports and VMs; show the agents and overdue critical jobs."""
    with reading_store() as store:
        job_counts = queries.count_jobs(store.session)
        mapping_counts = mappings.count_by_state(store.session)
        critical_jobs = queries.critical_jobs(store.session)
        postponed = [_postponed_fields(job) for job in queries.postponed_reports(store.session, MAX_SHOWN_REPORTS)]
        claimed_elsewhere = [
            {"id": job.id, "action": job.action, "fulcrum_id": job.fulcrum_id, "since": job.finished_at}
            for job in queries.jobs_claimed_elsewhere(store.session, MAX_SHOWN_CLAIMED_ELSEWHERE)
        ]
        agent_rows = nodes.recent(store.session, MAX_SHOWN_AGENTS)
        lease_s = store.settings.smith_lease_s
    now = utc_now()
    # `count_jobs` returns the number of jobs in each status, and under one more key the number of due reports.
    reports_due = job_counts.pop("reports_due")
    overdue_critical_jobs = [job.name for job in critical_jobs if critical.is_overdue(job, now)]
    rows = [_agent_fields(node, now, lease_s) for node in agent_rows]
    if as_json:
        document = {
            "jobs": job_counts,
            "reports_due": reports_due,
            "reports_postponed": postponed,
            "claimed_elsewhere": claimed_elsewhere,
            "mappings": mapping_counts,
            "nodes": rows,
            "critical_overdue": overdue_critical_jobs,
        }
        show_json(document)
        return
    show_fields(
        {
            "jobs": _counts_text(job_counts),
            "reports due": reports_due,
            "mappings": _counts_text(mapping_counts),
            "overdue critical jobs": ", ".join(overdue_critical_jobs) or "none",
        }
    )
    if postponed:
        show_heading("Results that FulcrumCore has not accepted (`smith jobs retry JOB` sends one again)")
        show_rows(postponed, REPORT_COLUMNS, if_empty="")
    if claimed_elsewhere:
        show_heading(
            "Jobs that another executor with this agent's token has claimed "
            "(stop it; then `smith jobs retry JOB` continues one here)"
        )
        show_rows(claimed_elsewhere, CLAIMED_ELSEWHERE_COLUMNS, if_empty="")
    show_heading("Agents")
    table_rows = [
        row | {"started": _ago_text(row["started_at"], now), "seen": _ago_text(row["seen_at"], now)} for row in rows
    ]
    show_rows(table_rows, AGENT_COLUMNS, if_empty="no agent has run yet")


def _postponed_fields(job: Job) -> dict[str, Any]:
    """Return a job whose report has failed as a dictionary with the keys of `--json`."""
    return {"id": job.id, "action": job.action, "attempts": job.report_attempts, "reason": job.report_note or ""}


def _agent_fields(node: Node, now: datetime, lease_s: float) -> dict[str, Any]:
    """Return an agent process (a row of the table `nodes`) as a dictionary with the keys of `--json`."""
    return {
        "id": node.id,
        "host": node.host,
        "pid": node.pid,
        "version": node.version,
        "state": _agent_state(node, now, lease_s),
        "started_at": node.started_at,
        "seen_at": node.seen_at,
        "stopped_at": node.stopped_at,
        "stop_reason": node.stop_reason,
        "concurrency": node.concurrency,
        "concurrency_wanted": node.concurrency_wanted,
        "draining": node.draining,
    }


def is_alive(node: Node, now: datetime, lease_s: float) -> bool:
    """Return whether the agent process is running: it has neither stopped nor vanished.

    A process of this host that does not exist any more has vanished after SILENT_AFTER_LEASES. Its absence alone proves
    nothing, because an agent in a container may have the name of this host and other process ids.
    """
    is_process_missing = node.host == socket.gethostname() and not Path(f"/proc/{node.pid}").exists()
    max_leases = SILENT_AFTER_LEASES if is_process_missing else VANISHED_AFTER_LEASES
    return node.stopped_at is None and now - node.seen_at <= timedelta(seconds=lease_s * max_leases)


def _agent_state(node: Node, now: datetime, lease_s: float) -> str:
    if node.stopped_at is not None:
        return "stopped"
    if not is_alive(node, now, lease_s):
        return "vanished"
    return "draining" if node.draining else "running"


def _counts_text(counts: dict[str, int]) -> str:
    """Return the counts as text, for example `2 pending, 1 processing`."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _ago_text(moment: datetime, now: datetime) -> str:
    return f"{elapsed_text(moment, now)} ago"
