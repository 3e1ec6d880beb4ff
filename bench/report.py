"""Prints the figures of the results as tables, with their ratios to the figures of the baseline."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

Json = dict[str, Any]
#: The mode in which ansible-runner runs the playbooks without the agent (see bench/one_mode.py).
BASELINE_MODE = "plain"


def show(results: Json, console: Console) -> None:
    """Print a table for each workload that the results contain."""
    for title, workload, make_table in (
        ("Create, start, stop: one job at a time", "runs", actions_table),
        ("Memory and rate of parallel creates, Proxmox tasks instant", "runs", parallel_creates_table),
        ("A burst from end to end", "bursts", bursts_table),
        ("Operations of the job queue, milliseconds", "rows", rows_table),
        ("Load, start, idle and recovery", "life", life_table),
        ("Heartbeats and metrics", "day", day_table),
        ("Resources after many warm runs", "soak", soak_table),
    ):
        if results.get(workload):
            console.print(_with_title(make_table(results), title))


def _with_title(table: Table, title: str) -> Table:
    table.title, table.title_justify = title, "left"
    return table


def _new_table(*headings: str) -> Table:
    """Return an empty table. Its first column is aligned to the left, and all other columns to the right."""
    table = Table(*headings)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def actions_table(results: Json) -> Table:
    """Return the CPU time and the wall time of each action in each mode, compared with the mode plain and the floor.

    The floor is the cost of an action without Ansible (see bench/floor.py).
    """
    table = _new_table("action", "mode", "CPU-s", "of plain", "wall s", "above the floor s")
    runs, floor = results["runs"], results["floor"]
    for action in ("create", "start", "stop"):
        baseline_figures = runs[BASELINE_MODE]["actions"][action]
        for mode in runs:
            figures = runs[mode]["actions"][action]
            table.add_row(
                action,
                mode,
                f"{figures['cpu_s']:.2f}",
                _format_ratio(figures["cpu_s"], baseline_figures["cpu_s"]),
                f"{figures['wall_s']:.2f}",
                f"{figures['wall_s'] - floor[action]['wall_s']:.2f}",
            )
        table.add_row(
            action,
            f"floor ({floor[action]['requests']:.0f} requests)",
            f"{floor[action]['cpu_s']:.3f}",
            _format_ratio(floor[action]["cpu_s"], baseline_figures["cpu_s"]),
            f"{floor[action]['wall_s']:.2f}",
            "",
        )
    return table


def parallel_creates_table(results: Json) -> Table:
    """Return the CPU time, rate and memory of parallel creates in each mode, compared with the mode plain."""
    table = _new_table(
        "mode", "slots", "CPU-s per job", "of plain", "jobs/min", "of plain", "MiB per slot", "of plain", "idle MiB"
    )
    baseline_figures = results["runs"][BASELINE_MODE]["burst"]
    for mode, figures in results["runs"].items():
        burst = figures["burst"]
        table.add_row(
            mode,
            str(burst["slots"]),
            f"{burst['cpu_s_per_job']:.2f}",
            _format_ratio(burst["cpu_s_per_job"], baseline_figures["cpu_s_per_job"]),
            f"{burst['jobs_per_min']:.0f}",
            _format_ratio(burst["jobs_per_min"], baseline_figures["jobs_per_min"]),
            f"{burst['mib_per_slot']:.0f}",
            _format_ratio(burst["mib_per_slot"], baseline_figures["mib_per_slot"]),
            f"{burst['idle_mib']:.0f}",
        )
    return table


def bursts_table(results: Json) -> Table:
    """Return the figures of each burst. The table compares the rate of a burst with three baselines.

    In the column `of plain`, the baseline is the highest rate without the agent, for clones of the same duration. In
    the columns `of 2-4-8` and `of a tick`, it is the rate of an agent that creates one VM at a time (see
    bench/serial.py).
    """
    headings = (
        "burst",
        "creates",
        "clone s",
        "all done s",
        "jobs/min",
        "of plain",
        "of 2-4-8",
        "of a tick",
        "CPU-s per job",
        "median s",
        "p95 s",
        "MiB per slot",
        "heartbeat gap p99 s",
    )
    table = _new_table(*headings)
    for burst in results["bursts"]:
        plain_rate = _best_rate_without_agent(results["bursts"], burst["clone_s"])
        baseline_rates = (plain_rate, *burst["serial_jobs_per_min"].values())
        table.add_row(
            burst["label"],
            str(burst["services"]),
            f"{burst['clone_s']:g}",
            f"{burst['all_done_s']:.0f}",
            f"{burst['jobs_per_min']:.0f}",
            *(_format_ratio(burst["jobs_per_min"], rate) for rate in baseline_rates),
            _format_figure(burst, "cpu_s_per_job", decimals=2),
            _format_figure(burst, "job_median_s", decimals=1),
            _format_figure(burst, "job_p95_s", decimals=1),
            _format_figure(burst, "mib_per_slot", decimals=0),
            _format_figure(burst.get("heartbeat", {}), "p99_s", decimals=1),
        )
    return table


def rows_table(results: Json) -> Table:
    """Return the durations of the job queue's operations for each number of rows.

    The last column compares the 99th percentile with the 99th percentile for the smallest number of rows.
    """
    table = _new_table("database", "rows", "operation", "p50", "p99", "of p99 at fewest rows")
    for database, figures_by_row_count in results["rows"].items():
        figures_for_fewest_rows = next(iter(figures_by_row_count.values()))
        for row_count, figures in figures_by_row_count.items():
            for operation, percentiles in figures.items():
                table.add_row(
                    database,
                    f"{int(row_count):,}",
                    operation,
                    f"{percentiles['p50_ms']:.1f}",
                    f"{percentiles['p99_ms']:.1f}",
                    _format_ratio(percentiles["p99_ms"], figures_for_fewest_rows[operation]["p99_ms"]),
                )
    return table


def _best_rate_without_agent(bursts: list[Json], clone_s: float) -> float:
    """Return the highest rate of the bursts without the agent whose clones take `clone_s`; 0 without such a burst."""
    rates = [
        burst["jobs_per_min"]
        for burst in bursts
        if burst["label"].startswith(BASELINE_MODE) and burst["clone_s"] == clone_s
    ]
    return max(rates, default=0.0)


def life_table(results: Json) -> Table:
    """Return the figures of the workload `life`, with one row for each measurement."""
    table = _new_table("what", "figure", "heartbeat gap p99 s")
    life = results["life"]
    cycle, mixed, idle, recovery = life["power_cycle"], life["mixed"], life["idle"], life["recovery"]
    baseline_actions = results["runs"][BASELINE_MODE]["actions"] if "runs" in results else {}
    for action in ("start", "stop"):
        figures = cycle[action]
        text = (
            f"{figures['all_done_s']:.0f} s, {figures['jobs_per_min']:.0f} jobs/min, "
            f"{figures['cpu_s_per_job']:.2f} CPU-s per job"
        )
        if baseline_actions:
            ratio = _format_ratio(figures["cpu_s_per_job"], baseline_actions[action]["cpu_s"])
            text += f", {ratio} of plain"
        table.add_row(
            f"{action} {cycle['vms']} VMs at once", text, _format_figure(cycle["heartbeat"], "p99_s", decimals=1)
        )
    table.add_row(
        f"mixed load, {mixed['requested_per_min']:.0f} actions/min",
        f"jobs: median {mixed['job_median_s']:.1f} s, p95 {mixed['job_p95_s']:.1f} s; "
        f"waits: median {mixed['wait_median_s']:.1f} s, p95 {mixed['wait_p95_s']:.1f} s",
        _format_figure(mixed["heartbeat"], "p99_s", decimals=1),
    )
    table.add_row("from the start to the first claim", f"{idle['first_claim_after_s']:.1f} s", "")
    table.add_row("idle", f"{idle['idle_share_of_a_core']:.2%} of a core, {idle['idle_mib']:.0f} MiB", "")
    table.add_row("smith --help", f"{idle['help_cpu_s']:.2f} CPU-s", "")
    table.add_row(
        f"agent killed in a burst of {recovery['services']}",
        f"claims again after {recovery['claims_again_after_s']:.1f} s, all done after {recovery['all_done_s']:.0f} s",
        _format_figure(recovery["heartbeat"], "p99_s", decimals=1),
    )
    return table


def day_table(results: Json) -> Table:
    """Return the shares of a CPU core that heartbeats and metrics use.

    The last row is for thousands of VMs. It also shows how many rounds of metrics ("turns") are necessary to send the
    metrics of all VMs.
    """
    table = _new_table("what", "of a core", "details")
    day, fleet = results["day"]["day"], results["day"]["fleet"]
    table.add_row(
        "heartbeats, one per 10 s",
        f"{day['heartbeat_share_of_a_core']:.2%}",
        f"{day['heartbeats']} heartbeats, {day['share']:.1%} of a day",
    )
    table.add_row(
        f"metrics of {day['vms']} VMs per minute",
        f"{day['metric_share_of_a_core']:.2%}",
        f"{day['metric_turns']} turns, memory grew by {day['grown_mib']:.1f} MiB",
    )
    table.add_row(
        f"metrics of {fleet['vms']:,} VMs",
        f"{fleet['share_of_a_core']:.2%}",
        f"{fleet['posts']} posts in {fleet['took_s']:.0f} s, {fleet['turns_for_all']:.1f} turns for all",
    )
    return table


def soak_table(results: Json) -> Table:
    """Return the samples of the workload `soak`: the resources in use between its runs."""
    soak = results["soak"]
    names = ("runs_done", "processes", "descriptors", "threads", "own_mib", "servers_mib", "files")
    table = _new_table(*names)
    for sample in soak["samples"]:
        table.add_row(*(f"{sample[name]:.0f}" for name in names))
    table.caption = f"left in temporary folders: {soak['temporary_files_left']}"
    return table


def _format_ratio(value: float, baseline: float) -> str:
    """Return the ratio as text; "-" without a baseline."""
    return f"{value / baseline:.2f}" if baseline else "-"


def _format_figure(figures: Json, name: str, *, decimals: int) -> str:
    """Return one of the figures as text; "-" if it is missing."""
    return f"{figures[name]:.{decimals}f}" if name in figures else "-"
