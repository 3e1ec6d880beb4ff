"""`smith nodes list`: lists the agent processes that use the database.

A node is one agent process, not a node of Proxmox. A node that `smith nodes drain` has paused has a row in the table
`pauses`. The row's column `scope` names the process's data folder, which stays the same after a restart. So the pause
applies to the restarted process.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor.cli.arguments import AsJson
from executor.cli.help_text import examples
from executor.cli.output import show_json
from executor.cli.store import read_only_transaction
from executor.cli.tables import show_rows
from executor.database import agent_queries, pause_scopes
from executor.database.times import utc_now
from executor.views.status_document import agent_process_fields
from executor.views.text import elapsed_text

if TYPE_CHECKING:  # Used only in annotations. The import of SQLAlchemy's ORM is slow.
    from executor.database.tables.agents import AgentProcessRow, Pause

#: The maximum number of agent processes that the list shows with `--all`.
MAX_SHOWN_NODE_COUNT = 100
#: The columns of the list: maps each key of a row to the heading of its column.
#: `slots` is the maximum number of parallel jobs: SMITH_CONCURRENCY, or `4 of 8` if an operator has set a lower limit.
COLUMNS = {
    "id": "NODE",
    "state": "STATE",
    "host": "HOST",
    "jobs": "JOBS",
    "slots": "SLOTS",
    "seen": "SEEN",
    "version": "VERSION",
    "paused_text": "PAUSED",
}


@examples(
    "smith nodes list",
    "smith nodes list --all    also agent processes that have stopped",
    "smith nodes list --json",
)
def list_nodes(
    show_all: Annotated[bool, typer.Option("--all", help="Also list agent processes that have stopped.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the agent processes that use this database.

    A running process updates its row in the database regularly. When the process stops, it marks the row as stopped.
    A process is `vanished` if it has not updated its row for two lease durations, and the row is not marked as stopped.
    Other processes take the jobs of a vanished process, and start a new attempt of each job.
    """
    with read_only_transaction() as transaction:
        listed_nodes = (
            agent_queries.most_recently_seen_processes(transaction.connection, MAX_SHOWN_NODE_COUNT)
            if show_all
            else agent_queries.processes_without_stop_time(transaction.connection)
        )
        job_counts = agent_queries.running_job_counts(transaction.connection)
        node_pauses = agent_queries.process_pauses_by_scope(transaction.connection)
        lease_s = transaction.settings.smith_lease_s
    now = utc_now()
    rows = [
        _json_fields(node, node_pauses.get(pause_scopes.scope_of_agent_process(node)), now, lease_s)
        for node in listed_nodes
    ]
    for row in rows:
        row["jobs"] = job_counts.get(row["id"], 0)
    if as_json:
        show_json(rows)
    else:
        show_rows([row | _table_fields(row, now) for row in rows], COLUMNS, if_empty="no agent is running")


def _json_fields(node: AgentProcessRow, pause: Pause | None, now: datetime, lease_s: float) -> dict[str, Any]:
    """Return a node as a dictionary with the keys of `--json`."""
    fields = agent_process_fields(node, now, lease_s)
    if pause is not None:
        fields["state"] = "paused" if fields["state"] == "running" else fields["state"]
    fields["paused"] = None if pause is None else {"since": pause.since, "who": pause.who, "reason": pause.reason}
    return fields


def _table_fields(row: dict[str, Any], now: datetime) -> dict[str, Any]:
    """Return the values of the table's columns that `--json` does not print.

    `concurrency` is SMITH_CONCURRENCY. `concurrency_wanted` is less than this if an operator has set a lower limit.
    """
    limit, concurrency = row["concurrency_wanted"], row["concurrency"]
    slots_text = str(concurrency) if limit >= concurrency else f"{limit} of {concurrency}"
    pause = row["paused"]
    paused_text = "" if pause is None else f"{pause['since']:%Y-%m-%d %H:%M}Z by {pause['who']}: {pause['reason']}"
    return {"slots": slots_text, "seen": f"{elapsed_text(row['seen_at'], now)} ago", "paused_text": paused_text}
