"""Prints the figures as tables, with the ratios of the figures to those of the baseline in the same results."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

Json = dict[str, Any]
#: The mode in which ansible-runner runs the playbooks without the agent (see bench/one_mode.py).
BASELINE = "plain"


def show(results: Json, console: Console) -> None:
    """Print a table for each workload that the results contain."""
    for title, figures, table in (
        ("Create, start, stop: one job at a time", "runs", actions_table),
        ("Memory and rate of parallel creates, Proxmox tasks instant", "runs", burst_table),
        ("A burst from end to end", "bursts", end_to_end_table),
        ("Operations of the job queue, milliseconds", "rows", rows_table),
        ("Load, start, idle and recovery", "life", life_table),
        ("Heartbeats and metrics", "day", day_table),
        ("Resources after many warm runs", "soak", soak_table),
    ):
        if results.get(figures):
            console.print(_titled(table(results), title))


def _titled(table: Table, title: str) -> Table:
    table.title, table.title_justify = title, "left"
    return table


def _table(*headings: str) -> Table:
    table = Table(*headings)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def actions_table(results: Json) -> Table:
    """Return the CPU time and wall time of each action in each mode, compared with plain ansible-runner."""
    table = _table("action", "mode", "CPU-s", "of plain", "wall s", "above the floor s")
    runs, floor = results["runs"], results["floor"]
    for action in ("create", "start", "stop"):
        base = runs[BASELINE]["actions"][action]
        for mode in runs:
            spent = runs[mode]["actions"][action]
            above = spent["wall_s"] - floor[action]["wall_s"]
            share = _ratio(spent["cpu_s"], base["cpu_s"])
            table.add_row(action, mode, f"{spent['cpu_s']:.2f}", share, f"{spent['wall_s']:.2f}", f"{above:.2f}")
        table.add_row(
            action,
            f"floor ({floor[action]['requests']:.0f} requests)",
            f"{floor[action]['cpu_s']:.3f}",
            _ratio(floor[action]["cpu_s"], base["cpu_s"]),
            f"{floor[action]['wall_s']:.2f}",
            "",
        )
    return table


def burst_table(results: Json) -> Table:
    """Return CPU time, rate and memory of parallel creates in each mode, compared with plain ansible-runner."""
    table = _table(
        "mode", "slots", "CPU-s per job", "of plain", "jobs/min", "of plain", "MiB per slot", "of plain", "idle MiB"
    )
    base = results["runs"][BASELINE]["burst"]
    for mode, figures in results["runs"].items():
        burst = figures["burst"]
        table.add_row(
            mode,
            str(burst["slots"]),
            f"{burst['cpu_s_per_job']:.2f}",
            _ratio(burst["cpu_s_per_job"], base["cpu_s_per_job"]),
            f"{burst['jobs_per_min']:.0f}",
            _ratio(burst["jobs_per_min"], base["jobs_per_min"]),
            f"{burst['mib_per_slot']:.0f}",
            _ratio(burst["mib_per_slot"], base["mib_per_slot"]),
            f"{burst['idle_mib']:.0f}",
        )
    return table


def end_to_end_table(results: Json) -> Table:
    """Return the figures of each burst, compared with two kinds of baselines.

    The first is the highest rate of plain ansible-runner for clones of the same duration. The others are the rates of
    agents that create one VM at a time (see bench/serial.py).
    """
    table = _table(
        *("burst", "creates", "clone s", "all done s", "jobs/min", "of plain", "of 2-4-8", "of a tick"),
        *("CPU-s per job", "median s", "p95 s", "MiB per slot", "heartbeat gap p99 s"),
    )
    for burst in results["bursts"]:
        serial, plain = burst["serial_jobs_per_min"], _best_plain(results["bursts"], burst["clone_s"])
        table.add_row(
            burst["label"],
            str(burst["services"]),
            f"{burst['clone_s']:g}",
            f"{burst['all_done_s']:.0f}",
            f"{burst['jobs_per_min']:.0f}",
            *(_ratio(burst["jobs_per_min"], rate) for rate in (plain, *serial.values())),
            _number(burst, "cpu_s_per_job", 2),
            _number(burst, "job_median_s", 1),
            _number(burst, "job_p95_s", 1),
            _number(burst, "mib_per_slot", 0),
            _number(burst.get("heartbeat", {}), "p99_s", 1),
        )
    return table


def rows_table(results: Json) -> Table:
    """Return the durations of the job queue's operations at each number of rows.

    Each duration is compared with that at the smallest number of rows.
    """
    table = _table("database", "rows", "operation", "p50", "p99", "of the smallest's p99")
    for database, sizes in results["rows"].items():
        smallest = next(iter(sizes.values()))
        for size, operations in sizes.items():
            for operation, percentiles in operations.items():
                ratio = _ratio(percentiles["p99_ms"], smallest[operation]["p99_ms"])
                times = (f"{percentiles['p50_ms']:.1f}", f"{percentiles['p99_ms']:.1f}")
                table.add_row(database, f"{int(size):,}", operation, *times, ratio)
    return table


def _best_plain(bursts: list[Json], clone_s: float) -> float:
    plain = [burst for burst in bursts if burst["label"].startswith(BASELINE) and burst["clone_s"] == clone_s]
    rates = [burst["jobs_per_min"] for burst in plain]
    return max(rates, default=0.0)


def life_table(results: Json) -> Table:
    """Return the figures of the workload `life`, with one row for each measurement."""
    table = _table("what", "figure", "heartbeat gap p99 s")
    life = results["life"]
    cycle, mixed, idle, recovery = life["power_cycle"], life["mixed"], life["idle"], life["recovery"]
    baseline = results["runs"][BASELINE]["actions"] if "runs" in results else {}
    for action in ("start", "stop"):
        figures = cycle[action]
        of_plain = f", {_ratio(figures['cpu_s_per_job'], baseline[action]['cpu_s'])} of plain" if baseline else ""
        cost = f"{figures['cpu_s_per_job']:.2f} CPU-s per job{of_plain}"
        text = f"{figures['all_done_s']:.0f} s, {figures['jobs_per_min']:.0f} jobs/min, {cost}"
        table.add_row(f"{action} {cycle['vms']} VMs at once", text, _number(cycle["heartbeat"], "p99_s", 1))
    table.add_row(
        f"mixed load, {mixed['requested_per_min']:.0f} actions/min",
        f"jobs: median {mixed['job_median_s']:.1f} s, p95 {mixed['job_p95_s']:.1f} s; waits: median "
        f"{mixed['wait_median_s']:.1f} s, p95 {mixed['wait_p95_s']:.1f} s",
        _number(mixed["heartbeat"], "p99_s", 1),
    )
    table.add_row("from the start to the first claim", f"{idle['first_claim_after_s']:.1f} s", "")
    table.add_row("idle", f"{idle['idle_share_of_a_core']:.2%} of a core, {idle['idle_mib']:.0f} MiB", "")
    table.add_row("smith --help", f"{idle['help_cpu_s']:.2f} CPU-s", "")
    text = f"claims again after {recovery['claims_again_after_s']:.1f} s, all done after {recovery['all_done_s']:.0f} s"
    killed = f"agent killed in a burst of {recovery['services']}"
    table.add_row(killed, text, _number(recovery["heartbeat"], "p99_s", 1))
    return table


def day_table(results: Json) -> Table:
    """Return the shares of a CPU core that heartbeats and metrics use.

    For very many VMs, the table also shows in how many rounds ("turns") the metrics of all VMs are sent.
    """
    table = _table("what", "of a core", "details")
    day, fleet = results["day"]["day"], results["day"]["fleet"]
    beats = f"{day['heartbeats']} heartbeats, {day['share']:.1%} of a day"
    table.add_row("heartbeats, one per 10 s", f"{day['heartbeat_share_of_a_core']:.2%}", beats)
    grown = f"{day['metric_turns']} turns, memory grew by {day['grown_mib']:.1f} MiB"
    table.add_row(f"metrics of {day['vms']} VMs per minute", f"{day['metric_share_of_a_core']:.2%}", grown)
    turns = f"{fleet['posts']} posts in {fleet['took_s']:.0f} s, {fleet['turns_for_all']:.1f} turns for all"
    table.add_row(f"metrics of {fleet['vms']:,} VMs", f"{fleet['share_of_a_core']:.2%}", turns)
    return table


def soak_table(results: Json) -> Table:
    """Return the samples of the resources in use that the workload `soak` took between its runs."""
    soak = results["soak"]
    names = ("runs_done", "processes", "descriptors", "threads", "own_mib", "servers_mib", "files")
    table = _table(*names)
    for sample in soak["samples"]:
        table.add_row(*(f"{sample[name]:.0f}" for name in names))
    table.caption = f"left in temporary folders: {soak['temporary_files_left']}"
    return table


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}" if base else "-"


def _number(figures: Json, name: str, digits: int) -> str:
    return f"{figures[name]:.{digits}f}" if name in figures else "-"
