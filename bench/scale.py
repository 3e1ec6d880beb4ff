"""Measures the rate of jobs and the SQL statements for each job, with one, two and three agents on one PostgreSQL.

Each agent has few slots and each clone takes some seconds, so a job mostly waits. The agents share the cores of this
machine with PostgreSQL, the simulators and the bench. The table shows how busy the cores were. A lab consists of the
FulcrumCore simulator, the Proxmox stand-in and the agents.
"""

from __future__ import annotations

import time
from typing import Any

from bench.labs import WAIT_AFTER_JOBS_S, order_services_and_wait
from bench.measuring import machine_facts, measure_cpu_use
from bench.nodes import lab_with_running_agents
from bench.part import Bench, Goal, Part, Table

Json = dict[str, Any]
#: How many jobs an agent runs in parallel.
SLOTS = 4
#: The goal: n agents together reach at least this share of n times the rate of one agent.
MIN_SHARE = 0.9
#: The goal: with several agents, each job needs at most this many times the statements that it needs with one agent.
MAX_STATEMENTS_RATIO = 1.1
#: The goal for the rate is checked only if at most this share of the cores was busy. Then the cores were not the limit.
MAX_BUSY_SHARE = 0.8


def _measure(bench: Bench) -> Json:
    """Return the figures for each number of agents. Raises RuntimeError without a PostgreSQL server."""
    # `scale_counts` are the numbers of agents.
    return {str(count): _measure_agents(bench, count) for count in bench.sizes.scale_counts}


def _measure_agents(bench: Bench, agent_count: int) -> Json:
    """Return the figures for this number of agents. The statements that idle agents would send are subtracted."""
    # `scale_creates` is the number of create jobs for each agent.
    create_count, clone_s = bench.sizes.scale_creates * agent_count, bench.sizes.scale_clone_s
    with lab_with_running_agents(
        bench, agent_count, clone_s=clone_s, SMITH_CONCURRENCY=f"{SLOTS}"
    ) as lab_with_database:
        # The first runs fill caches.
        order_services_and_wait(lab_with_database.lab, [f"first-{number}" for number in range(agent_count)])
        time.sleep(WAIT_AFTER_JOBS_S)  # until the agents have ended all work for the jobs
        window_s = bench.sizes.idle_agents_window_s  # how long the SQL statements of the idle agents are counted
        # The counts map a kind of request, such as "polls", to a number. The kind "statements" is the SQL statements.
        idle_counts = lab_with_database.counts_during(window_s)
        counts_before, started_at_s = lab_with_database.counts(), time.monotonic()
        with measure_cpu_use() as cpu_use:
            jobs = order_services_and_wait(lab_with_database.lab, [f"vm-{number}" for number in range(create_count)])
            jobs_wall_s = time.monotonic() - started_at_s
        time.sleep(WAIT_AFTER_JOBS_S)
        counts, counted_for_s = lab_with_database.counts() - counts_before, time.monotonic() - started_at_s
        statements = counts["statements"] - idle_counts["statements"] * counted_for_s / window_s
        first_claim_at_s = min(job.claimed_at or 0.0 for job in jobs)
        first_claim_to_last_end_s = max(job.completed_at or 0.0 for job in jobs) - first_claim_at_s
        cores = int(str(machine_facts()["cores"]))
        return {
            "creates": create_count,
            "clone_s": clone_s,
            "jobs_per_min": 60 * create_count / first_claim_to_last_end_s,
            "statements_per_job": max(0.0, statements) / create_count,
            # the share of all cores that the bench and its child processes (agents, PostgreSQL, simulators) used
            "own_share": cpu_use.bench_cpu_s / (cores * jobs_wall_s),
            "others_share": cpu_use.others_share,
        }


def ratio_to_linear_growth(figures: Json, count: str) -> float:
    """Return the measured rate of `count` agents, divided by the rate that they would reach with linear growth.

    With linear growth, n agents reach n times the rate of one agent. If one agent was not measured, the rate of one
    agent is computed from the smallest measured number of agents.
    """
    smallest_count = min(figures, key=int)
    linear_rate = figures[smallest_count]["jobs_per_min"] * int(count) / int(smallest_count)
    return float(figures[count]["jobs_per_min"] / linear_rate)


def _statements_ratio(figures: Json, count: str) -> float:
    """Return the statements per job with `count` agents, divided by the statements per job with one agent.

    If one agent was not measured, the smallest measured number of agents is used instead.
    """
    smallest_count = min(figures, key=int)
    return float(figures[count]["statements_per_job"] / figures[smallest_count]["statements_per_job"])


def _tables(figures: Json) -> list[Table]:
    rows = [
        (
            count,
            f"{figures_of_count['creates']}",
            f"{figures_of_count['jobs_per_min']:.1f}",
            f"{ratio_to_linear_growth(figures, count):.2f}",
            f"{figures_of_count['statements_per_job']:.1f}",
            f"{_statements_ratio(figures, count):.2f}",
            f"{figures_of_count['own_share']:.0%}",
            f"{figures_of_count['others_share']:.0%}",
        )
        for count, figures_of_count in figures.items()
    ]
    clone_s = next(iter(figures.values()))["clone_s"]
    headings = (
        *("agents", "create jobs", "jobs/min", "ratio to linear growth", "statements per job", "ratio to one agent"),
        *("CPU used by bench and agents", "CPU used by other processes"),
    )
    title = f"Measured rate of jobs: {SLOTS} slots for each agent, and clones of {clone_s:g} s"
    return [Table(title=title, headings=headings, rows=rows)]


def _goals(figures: Json) -> list[Goal]:
    """Return the goals for each number of agents except the smallest.

    If more than MAX_BUSY_SHARE of the cores was busy, there is no goal for the rate.
    """
    goals = []
    for count, figures_of_count in figures.items():
        if count == min(figures, key=int):
            continue
        if figures_of_count["own_share"] + figures_of_count["others_share"] <= MAX_BUSY_SHARE:
            text = f"jobs per minute with {count} agents, ratio to linear growth"
            share = ratio_to_linear_growth(figures, count)
            goals.append(Goal(figure_name=text, limit=MIN_SHARE, measured=share, is_minimum=True))
        text = f"statements per job with {count} agents, ratio to one agent"
        goals.append(Goal(figure_name=text, limit=MAX_STATEMENTS_RATIO, measured=_statements_ratio(figures, count)))
    return goals


#: A part is one benchmark of the bench. `bench/__main__.py` runs this one.
PART = Part(help="jobs per minute of agents on one PostgreSQL", measure=_measure, tables=_tables, goals=_goals)
