"""`smith status`: is it working, and is anything waiting or overdue?"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from executor.cli import critical
from executor.cli.arguments import AsJson
from executor.cli.help_text import examples
from executor.cli.output import ago, show_json
from executor.cli.store import reading_store
from executor.cli.tables import show_facts, show_heading, show_rows
from executor.database import mappings, nodes, queries
from executor.database.tables import Node, utc_now

#: Starts of agents that are shown: the living ones, and some history.
SHOWN_NODES = 10
#: A living agent says so six times a lease.
LEASES_UNTIL_VANISHED = 2
NODE_COLUMNS = {
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
    """Count jobs, reports and VMs; name the agents and what is overdue."""
    with reading_store() as store:
        jobs = queries.count_jobs(store.session)
        vms = mappings.count_by_state(store.session)
        duties = queries.critical_jobs(store.session)
        agents = nodes.recent(store.session, SHOWN_NODES)
        lease_s = store.settings.smith_lease_s
    now = utc_now()
    reports_due = jobs.pop("reports_due")
    overdue = [duty.name for duty in duties if critical.is_overdue(duty, now)]
    rows = [_node_facts(node, now, lease_s) for node in agents]
    if as_json:
        found = {"jobs": jobs, "reports_due": reports_due, "mappings": vms, "nodes": rows, "critical_overdue": overdue}
        show_json(found)
        return
    show_facts(
        {
            "jobs": _counted(jobs),
            "reports due": reports_due,
            "mappings": _counted(vms),
            "overdue": ", ".join(overdue) or "nothing",
        }
    )
    show_heading("Agents")
    shown = [row | {"started": _past(row["started_at"], now), "seen": _past(row["seen_at"], now)} for row in rows]
    show_rows(shown, NODE_COLUMNS, nothing="no agent has run yet")


def _node_facts(node: Node, now: datetime, lease_s: float) -> dict[str, Any]:
    """Return everything of one start of an agent. These names are an interface of `--json`."""
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
    """True when the agent has not said that it stopped, and has said lately that it lives."""
    return node.stopped_at is None and now - node.seen_at <= timedelta(seconds=lease_s * LEASES_UNTIL_VANISHED)


def _state(node: Node, now: datetime, lease_s: float) -> str:
    if node.stopped_at is not None:
        return "stopped"
    if not is_alive(node, now, lease_s):
        return "vanished"
    return "draining" if node.draining else "running"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _past(moment: datetime, now: datetime) -> str:
    return f"{ago(moment, now)} ago"
