"""Counts the requests of agents to their PostgreSQL, FulcrumCore and Proxmox: without jobs, for each job, for each VM.

Only counts are measured, so other programs on the machine change nothing. `bench.planning` computes from the counts the
load with more nodes and more VMs.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smith_lab.system import LabSystem, wait_for

from bench.baseline import CURRENT
from bench.labs import SETTLE_S, START_TIMEOUT_S, order_and_wait, running_lab_of, wait_for_jobs
from bench.part import POLL_INTERVAL_S, Bench, Part, Table
from bench.planning import planning_tables

Json = dict[str, Any]
#: The kinds of requests that are counted. COMMIT and ROLLBACK count as transactions, not as statements.
KINDS = ("statements", "transactions", "polls", "heartbeats", "other calls", "metric posts", "proxmox requests")
#: The interval of metrics. It is half of the default, so that the bench takes less time.
METRICS_INTERVAL_S = 30.0
#: A line of PostgreSQL's log about a statement that a client has sent.
LOGGED_STATEMENT = re.compile(r" LOG:  (?:statement|execute [^:]+): (\w+)")
#: The statements that begin and end a transaction.
BEGIN_WORDS, END_WORDS = frozenset({"BEGIN"}), frozenset({"COMMIT", "ROLLBACK"})


@dataclass(kw_only=True)
class LabWithDatabase:
    """A lab with several agents, and the log of their PostgreSQL."""

    lab: LabSystem
    database_log: Path

    def counts(self) -> Counter[str]:
        """Return how often each of KINDS has happened so far."""
        statements = LOGGED_STATEMENT.findall(self.database_log.read_text(encoding="utf-8", errors="replace"))
        calls = Counter(_kind_of_call(call["method"], call["path"]) for call in self.lab.core.history())
        ends = sum(word in END_WORDS for word in statements)
        beginnings = sum(word in BEGIN_WORDS for word in statements)
        return calls + Counter(
            {
                "statements": len(statements) - ends - beginnings,
                "transactions": ends,
                "proxmox requests": len(self.lab.proxmox.request_log()),
            }
        )

    def counts_during(self, seconds: float) -> Counter[str]:
        before = self.counts()
        time.sleep(seconds)
        return self.counts() - before


def _kind_of_call(method: str, path: str) -> str:
    if path.endswith("/jobs/pending"):
        return "polls"
    if path.endswith("/metric-entries"):
        return "metric posts"
    return "heartbeats" if "/agents/me" in path else "other calls"


def _measure(bench: Bench) -> Json:
    """Return the counts for each number of agents. Raises RuntimeError without a PostgreSQL server."""
    return {str(count): _measure_agents(bench, count) for count in bench.sizes.node_counts}


def _measure_agents(bench: Bench, agent_count: int) -> Json:
    jobs, window_s = bench.sizes.node_jobs, bench.sizes.node_window_s
    with running_agents(bench, agent_count) as lab_with_database:
        # The first run after a start has more requests. The VM of this job stays stopped.
        order_and_wait(lab_with_database.lab, ["first"])
        time.sleep(SETTLE_S)
        idle = lab_with_database.counts_during(window_s)
        started, counts_before = time.monotonic(), lab_with_database.counts()
        created = order_and_wait(lab_with_database.lab, [f"vm-{number}" for number in range(jobs)])
        for job in created:
            lab_with_database.lab.admin.start_action(job.service_id, "start")
        wait_for_jobs(lab_with_database.lab)
        time.sleep(SETTLE_S)
        with_jobs, took_s = lab_with_database.counts() - counts_before, time.monotonic() - started
        time.sleep(METRICS_INTERVAL_S)  # a VM has fewer values in its first round
        metrics = lab_with_database.counts_during(METRICS_INTERVAL_S)
        return {
            "per_s": {kind: idle[kind] / window_s for kind in KINDS},
            "per_job": {
                kind: max(0.0, with_jobs[kind] - idle[kind] * took_s / window_s) / (2 * jobs) for kind in KINDS
            },
            "posts_per_vm": metrics["metric posts"] / jobs,
        }


@contextmanager
def running_agents(
    bench: Bench, agent_count: int, *, clone_s: float = 0.0, **agent_settings: str
) -> Iterator[LabWithDatabase]:
    """Run agents with these settings on one new PostgreSQL server that logs every statement."""
    from support import databases  # noqa: PLC0415  a helper module of the tests; bench/baseline.py adds its folder

    binaries = databases.postgres_binaries()
    if binaries is None:
        raise RuntimeError("this part needs PostgreSQL's server programs, which this machine does not have")
    (variant,) = [variant for variant in bench.variants if variant.name == CURRENT]
    options = (*databases.FAST, "log_statement=all")
    with ExitStack() as stack:
        cluster = stack.enter_context(databases.empty_cluster(binaries, options))
        cluster.execute("CREATE DATABASE smith")
        settings = {
            "SMITH_DATABASE_URL": cluster.url("smith"),
            "SMITH_METRICS_INTERVAL_S": f"{METRICS_INTERVAL_S:g}",
            "FULCRUM_POLL_INTERVAL_S": POLL_INTERVAL_S,
        }
        settings |= agent_settings
        lab = stack.enter_context(running_lab_of(variant, bench.folder, clone_s=clone_s, **settings))
        for number in range(agent_count):
            folder = lab.folder / f"node-{number}"
            node = lab.for_another_executor(folder, SMITH_RUN_DIR=f"{lab.settings['SMITH_RUN_DIR']}/{number}")
            stack.callback(node.stop_executor)
            node.start_executor()
            wait_for(lambda node=node: node.log_events("agent_ready"), START_TIMEOUT_S, "the agent to be ready")
        yield LabWithDatabase(lab=lab, database_log=cluster.folder / "log")


def _tables(figures: Json) -> list[Table]:
    rows = [
        (name, kind, *(f"{of_agents[key][kind]:.2f}" for of_agents in figures.values()))
        for key, name in (("per_s", "without jobs, per second"), ("per_job", "per job (half creates, half starts)"))
        for kind in KINDS
        if kind != "metric posts"
    ]
    rows.append(
        (
            "per running VM and round of metrics",
            "metric posts",
            *(f"{of_agents['posts_per_vm']:.1f}" for of_agents in figures.values()),
        )
    )
    headings = ("load", "requests", *(f"{count} {'agent' if count == '1' else 'agents'}" for count in figures))
    measured = Table(title="Measured, of all agents together", headings=headings, rows=rows)
    return [measured, *planning_tables(figures)]


PART = Part(help="requests of agents to one PostgreSQL, FulcrumCore and Proxmox", measure=_measure, tables=_tables)
