"""`smith status`: counts jobs, reports and VMs, and shows the agent processes and the overdue critical jobs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from executor.cli import critical
from executor.cli.arguments import AsJson
from executor.cli.help_text import examples
from executor.cli.output import elapsed, show_json
from executor.cli.store import reading_store
from executor.cli.tables import show_fields, show_heading, show_rows
from executor.database import mappings, nodes, queries
from executor.database.tables import Node, utc_now

#: The maximum number of agent processes that are shown. They are running or have ended; the one seen last is first.
MAX_SHOWN_AGENTS = 10
#: An agent process has vanished if it has not updated its row in the table `nodes` for this many lease durations. A
#: running agent updates the row six times in each lease duration.
LEASES_UNTIL_VANISHED = 2
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
        jobs = queries.count_jobs(store.session)
        vms = mappings.count_by_state(store.session)
        critical_jobs = queries.critical_jobs(store.session)
        agents = nodes.recent(store.session, MAX_SHOWN_AGENTS)
        lease_s = store.settings.smith_lease_s
    now = utc_now()
    # `count_jobs` returns the number of due reports beside the number of jobs in each status.
    reports_due = jobs.pop("reports_due")
    overdue = [job.name for job in critical_jobs if critical.is_overdue(job, now)]
    rows = [_agent_fields(node, now, lease_s) for node in agents]
    if as_json:
        document = {
            "jobs": jobs,
            "reports_due": reports_due,
            "mappings": vms,
            "nodes": rows,
            "critical_overdue": overdue,
        }
        show_json(document)
        return
    show_fields(
        {
            "jobs": _joined(jobs),
            "reports due": reports_due,
            "mappings": _joined(vms),
            "overdue": ", ".join(overdue) or "nothing",
        }
    )
    show_heading("Agents")
    shown = [
        row | {"started": _elapsed_text(row["started_at"], now), "seen": _elapsed_text(row["seen_at"], now)}
        for row in rows
    ]
    show_rows(shown, AGENT_COLUMNS, if_empty="no agent has run yet")


def _agent_fields(node: Node, now: datetime, lease_s: float) -> dict[str, Any]:
    """Return an agent process (a row of the table `nodes`) as a dictionary with the keys of `--json`."""
    return {
        "id": node.id,
        "host": node.host,
        "pid": node.pid,
        "version": node.version,
        "state": _state(node, now, lease_s),
        "started_at": node.started_at,
        "seen_at": node.seen_at,
        "stopped_at": node.stopped_at,
        "stop_reason": node.stop_reason,
        "concurrency": node.concurrency,
        "concurrency_wanted": node.concurrency_wanted,
        "draining": node.draining,
    }


def is_alive(node: Node, now: datetime, lease_s: float) -> bool:
    """Return whether the agent process is running: it has neither stopped nor vanished (LEASES_UNTIL_VANISHED)."""
    return node.stopped_at is None and now - node.seen_at <= timedelta(seconds=lease_s * LEASES_UNTIL_VANISHED)


def _state(node: Node, now: datetime, lease_s: float) -> str:
    if node.stopped_at is not None:
        return "stopped"
    if not is_alive(node, now, lease_s):
        return "vanished"
    return "draining" if node.draining else "running"


def _joined(counts: dict[str, int]) -> str:
    """Return the counts as text, for example `2 pending, 1 processing`."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _elapsed_text(moment: datetime, now: datetime) -> str:
    return f"{elapsed(moment, now)} ago"
