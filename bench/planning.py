"""Computes the load of database, FulcrumCore and Proxmox with more nodes and VMs than the bench can run.

A node is one agent process. All nodes share one PostgreSQL database, and FulcrumCore knows all nodes as one agent. The
part `nodes` of the bench counts requests with a few nodes, and these pure functions compute the load from the counts.
`bench.report` writes the table to docs/planning.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.part import Table
from executor.agent.metrics import MAX_ENTRIES_PER_S, SENDING_SHARE_OF_INTERVAL

Json = dict[str, Any]
#: The number of nodes and the number of VMs in each row of the table.
SCENARIOS = ((1, 1_000), (3, 10_000), (10, 100_000), (100, 1_000_000))
#: The assumed number of jobs for each VM and day: one job (such as create, start, stop or resize) in a week.
JOBS_PER_VM_AND_DAY = 1 / 7
#: The number of jobs in the busiest hour, divided by the number of jobs in an average hour.
BUSY_HOUR_FACTOR = 5.0
#: The default of SMITH_METRICS_INTERVAL_S.
METRICS_INTERVAL_S = 60.0
#: The maximum number of a node's connections to the database, and the number for an idle node (docs/many_machines.md).
MAX_CONNECTIONS, IDLE_CONNECTIONS = 12, 6
S_PER_DAY, S_PER_HOUR = 86_400.0, 3_600.0
#: The kinds of calls of FulcrumCore's API, except those that send metrics.
CALL_KINDS = ("polls", "heartbeats", "other calls")


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load of database, FulcrumCore and Proxmox in the busiest hour."""

    jobs_per_s: float
    statements_per_s: float
    transactions_per_s: float
    fulcrum_calls_per_s: float  #: without metrics
    metric_posts_per_s: float  #: the rate that would be needed to send the metrics of all VMs in each interval
    #: The time to send the metrics of all VMs once. It is at least METRICS_INTERVAL_S, because the metrics of a VM are
    #: sent at most once in an interval. Only one node sends metrics. It sends them only during a part of each interval
    #: (the fraction SENDING_SHARE_OF_INTERVAL), and then at most MAX_ENTRIES_PER_S metric entries per second.
    metrics_round_s: float
    proxmox_requests_per_s: float


def load_in_busiest_hour(figures: Json, node_count: int, vm_count: int) -> Load:
    """Return the load in the busiest hour.

    `figures` contains, for each measured number of nodes, what the part `nodes` of the bench has counted: a dictionary
    with the members `per_s`, `per_job` and `posts_per_vm`. `per_s` contains the requests per second without jobs, by
    kind: "statements" and "transactions" are sent to the database, "proxmox requests" to Proxmox, and all other kinds
    to FulcrumCore. `per_job` contains the requests for one job, by kind. `posts_per_vm` is the number of metric
    posts for one VM in one metrics interval.
    """
    jobs_per_s = vm_count * JOBS_PER_VM_AND_DAY / S_PER_DAY * BUSY_HOUR_FACTOR
    per_job = figures[_largest_node_count(figures)]["per_job"]
    posts_per_interval = vm_count * figures[_largest_node_count(figures)]["posts_per_vm"]

    def per_s(kind: str) -> float:
        return idle_per_s(figures, kind, node_count) + jobs_per_s * per_job[kind]

    return Load(
        jobs_per_s=jobs_per_s,
        statements_per_s=per_s("statements"),
        transactions_per_s=per_s("transactions"),
        fulcrum_calls_per_s=sum(per_s(kind) for kind in CALL_KINDS),
        metric_posts_per_s=posts_per_interval / METRICS_INTERVAL_S,
        # A post sends one metric entry.
        metrics_round_s=max(METRICS_INTERVAL_S, posts_per_interval / (MAX_ENTRIES_PER_S * SENDING_SHARE_OF_INTERVAL)),
        proxmox_requests_per_s=per_s("proxmox requests"),
    )


def idle_per_s(figures: Json, kind: str, node_count: int) -> float:
    """Return how many requests of a kind `node_count` nodes send in a second without jobs.

    Extrapolates linearly from the measurements with the smallest and the largest number of nodes.
    """
    smallest_count, largest_count = min(figures, key=int), _largest_node_count(figures)
    base = figures[smallest_count]["per_s"][kind]
    added_nodes = int(largest_count) - int(smallest_count)
    per_added_node = (figures[largest_count]["per_s"][kind] - base) / added_nodes if added_nodes else 0.0
    return float(max(0.0, base + per_added_node * (node_count - int(smallest_count))))


def planning_tables(figures: Json) -> list[Table]:
    """Return a list with one table. The table has a row for each pair in SCENARIOS."""
    rows = []
    for node_count, vm_count in SCENARIOS:
        load = load_in_busiest_hour(figures, node_count, vm_count)
        rows.append(
            (
                f"{node_count:,}",
                f"{vm_count:,}",
                _format_number(load.jobs_per_s * S_PER_HOUR),
                _format_number(load.statements_per_s),
                _format_number(load.transactions_per_s),
                f"{node_count * IDLE_CONNECTIONS:,} to {node_count * MAX_CONNECTIONS:,}",
                _format_number(load.fulcrum_calls_per_s),
                _format_number(load.metric_posts_per_s),
                _format_duration(load.metrics_round_s),
                _format_number(load.proxmox_requests_per_s),
            )
        )
    headings = (
        *("nodes", "VMs", "jobs/h", "statements/s", "transactions/s", "database connections"),
        *(
            "FulcrumCore: calls/s",
            "metric posts/s that all VMs need",
            "time to send the metrics of all VMs once",
            "Proxmox: requests/s",
        ),
    )
    return [
        Table(
            title="Computed: the busiest hour; FulcrumCore knows all nodes as one agent; there is one Proxmox cluster",
            headings=headings,
            rows=rows,
        )
    ]


def _largest_node_count(figures: Json) -> str:
    return max(figures, key=int)


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _format_duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / S_PER_HOUR:.1f} h"
