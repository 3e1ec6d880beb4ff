"""Counts the requests of agents to PostgreSQL, FulcrumCore and Proxmox: without jobs, for each job and for each VM.

The counts are the same on a busy machine. From the counts, `bench.planning` computes the load with more agents and
more VMs. In names such as `bench.sizes.node_counts`, a node is an agent and not a Proxmox node. All agents use the
same database.
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

from bench.labs import (
    START_TIMEOUT_S,
    WAIT_AFTER_JOBS_S,
    order_services_and_wait,
    running_lab_without_agent,
    wait_for_jobs,
)
from bench.part import POLL_INTERVAL_S, Bench, Part, Table
from bench.planning import planning_tables

Json = dict[str, Any]
#: The kinds of requests that are counted. Each COMMIT and each ROLLBACK is counted as a transaction. BEGIN, COMMIT and
#: ROLLBACK are not counted as statements. Polls, heartbeats, metric posts and other calls are requests to FulcrumCore.
#: A poll asks for pending jobs, and a metric post sends one metric value of a VM.
KINDS = ("statements", "transactions", "polls", "heartbeats", "other calls", "metric posts", "proxmox requests")
#: The interval at which the agents send metrics. It is half of the default, so that the bench takes less time.
METRICS_INTERVAL_S = 30.0
#: Matches a line of PostgreSQL's log about a statement that a client has sent. Group 1 is the statement's first word.
LOGGED_STATEMENT = re.compile(r" LOG:  (?:statement|execute [^:]+): (\w+)")
#: The first words of the statements that begin and end a transaction.
BEGIN_WORDS, END_WORDS = frozenset({"BEGIN"}), frozenset({"COMMIT", "ROLLBACK"})


@dataclass(kw_only=True)
class LabWithDatabase:
    """A lab with several agents, and the log of the PostgreSQL server that they use.

    `lab.core` is the FulcrumCore simulator, which records all calls. `lab.admin` calls it as an administrator.
    """

    lab: LabSystem
    database_log: Path

    def counts(self) -> Counter[str]:
        """Return how many requests of each of KINDS the agents have sent so far."""
        first_words = LOGGED_STATEMENT.findall(self.database_log.read_text(encoding="utf-8", errors="replace"))
        calls = Counter(_kind_of_call(call["method"], call["path"]) for call in self.lab.core.history())
        end_count = sum(word in END_WORDS for word in first_words)
        begin_count = sum(word in BEGIN_WORDS for word in first_words)
        return calls + Counter(
            {
                "statements": len(first_words) - end_count - begin_count,
                "transactions": end_count,
                "proxmox requests": len(self.lab.proxmox.request_log()),
            }
        )

    def counts_during(self, seconds: float) -> Counter[str]:
        """Wait `seconds`; return how many requests of each of KINDS the agents sent in this time."""
        counts_before = self.counts()
        time.sleep(seconds)
        return self.counts() - counts_before


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
    """Return the requests of all agents: per second without jobs, per job, and for the metrics of a running VM."""
    # `vm_count_of_part_nodes` is the number of VMs in this part of the bench (named `nodes`). Each VM has a create job
    # and a start job.
    vm_count, window_s = bench.sizes.vm_count_of_part_nodes, bench.sizes.idle_agents_window_s
    with lab_with_running_agents(bench, agent_count) as lab_with_database:
        # The first playbook run sends more requests, so its requests are not counted. Its VM stays stopped, so it
        # has no metrics.
        order_services_and_wait(lab_with_database.lab, ["first"])
        time.sleep(WAIT_AFTER_JOBS_S)
        idle_counts = lab_with_database.counts_during(window_s)
        start_time_s, counts_before = time.monotonic(), lab_with_database.counts()
        create_jobs = order_services_and_wait(lab_with_database.lab, [f"vm-{number}" for number in range(vm_count)])
        for job in create_jobs:
            lab_with_database.lab.admin.request_action(job.service_id, "start")
        wait_for_jobs(lab_with_database.lab)
        time.sleep(WAIT_AFTER_JOBS_S)
        counts_with_jobs, took_s = lab_with_database.counts() - counts_before, time.monotonic() - start_time_s
        time.sleep(METRICS_INTERVAL_S)  # a VM's first metrics lack network and disk rates, which need two readings
        metrics_counts = lab_with_database.counts_during(METRICS_INTERVAL_S)
        # The requests that the agents would also have sent without jobs are subtracted.
        counts_of_jobs = {kind: counts_with_jobs[kind] - idle_counts[kind] * took_s / window_s for kind in KINDS}
        return {
            # without jobs
            "per_s": {kind: idle_counts[kind] / window_s for kind in KINDS},
            "per_job": {kind: max(0.0, count) / (2 * vm_count) for kind, count in counts_of_jobs.items()},
            # in one metrics interval
            "posts_per_vm": metrics_counts["metric posts"] / vm_count,
        }


@contextmanager
def lab_with_running_agents(
    bench: Bench, agent_count: int, *, clone_s: float = 0.0, **agent_settings: str
) -> Iterator[LabWithDatabase]:
    """Run agents on one new PostgreSQL server, which logs every statement. `agent_settings` are settings of each agent.

    If `clone_s` is 0, no Proxmox task takes time. Otherwise, a clone takes `clone_s` seconds, and any other Proxmox
    task takes the default time of the Proxmox stand-in.
    """
    from support import databases  # noqa: PLC0415  in tests/support; bench/baseline.py adds tests/ to sys.path

    binaries = databases.postgres_binaries()
    if binaries is None:
        raise RuntimeError("this part needs PostgreSQL's server programs, which this machine does not have")
    options = (*databases.FAST, "log_statement=all")  # FAST: options that make PostgreSQL fast but not crash-safe
    with ExitStack() as stack:
        postgres_server = stack.enter_context(databases.empty_cluster(binaries, options))
        postgres_server.execute("CREATE DATABASE smith")
        settings = {
            "SMITH_DATABASE_URL": postgres_server.url("smith"),
            "SMITH_METRICS_INTERVAL_S": f"{METRICS_INTERVAL_S:g}",
            "FULCRUM_POLL_INTERVAL_S": POLL_INTERVAL_S,
        }
        settings |= agent_settings
        # The bench can compare variants: versions of the executor, and ansible-runner alone. This variant is the
        # executor of this checkout.
        lab = stack.enter_context(
            running_lab_without_agent(bench.variant_of_this_checkout, bench.folder, clone_s=clone_s, **settings)
        )
        for number in range(agent_count):
            folder = lab.folder / f"node-{number}"
            # Each agent runs in an executor of its own (an agent, its supervisor and its warm servers). `agent_lab` has
            # the simulator and the stand-in of `lab`.
            agent_lab = lab.copy_for_another_executor(folder, SMITH_RUN_DIR=f"{lab.settings['SMITH_RUN_DIR']}/{number}")
            stack.callback(agent_lab.stop_executor)
            agent_lab.start_executor()
            wait_for(
                lambda agent_lab=agent_lab: agent_lab.log_events("agent_ready"),
                START_TIMEOUT_S,
                "the agent to be ready",
            )
        yield LabWithDatabase(lab=lab, database_log=postgres_server.folder / "log")


def _tables(figures: Json) -> list[Table]:
    rows = [
        (load, kind, *(f"{counts[key][kind]:.2f}" for counts in figures.values()))
        for key, load in (("per_s", "without jobs, per second"), ("per_job", "per job (half creates, half starts)"))
        for kind in KINDS
        if kind != "metric posts"
    ]
    rows.append(
        (
            "per running VM and metrics interval",
            "metric posts",
            *(f"{counts['posts_per_vm']:.1f}" for counts in figures.values()),
        )
    )
    headings = ("load", "requests", *(f"{count} {'agent' if count == '1' else 'agents'}" for count in figures))
    # Each cell is a number of requests: the sum of all agents.
    counts_table = Table(title="Measured, of all agents together", headings=headings, rows=rows)
    return [counts_table, *planning_tables(figures)]


#: A part is one benchmark of the bench. `bench/__main__.py` runs this one.
PART = Part(help="requests of agents to one PostgreSQL, FulcrumCore and Proxmox", measure=_measure, tables=_tables)
